"""Mixup and CutMix from the loader to the gradients, with an attached criterion, against the loss
in plain PyTorch."""

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from discfused import FusedDiscLoss
from models import CLASSES, Net

v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is not installed")

N = 12
MIXUP, CUTMIX = v2.MixUp(num_classes=CLASSES), v2.CutMix(num_classes=CLASSES)
TRANSFORMS = {"mixup": MIXUP, "cutmix": CUTMIX, "either": v2.RandomChoice([MIXUP, CUTMIX])}
OPTIONS = {
    "plain": [],
    "label smoothing": ["label_smoothing"],
    "class weights": ["weight"],
    "sample weights": ["sample_weight"],
    "all": ["label_smoothing", "weight", "sample_weight"],
}


def batches(transform):
    """Two batches, as in the documentation of torchvision: a collate_fn that mixes."""
    data = [(torch.randn(3, 8, 8), index % CLASSES) for index in range(2 * N)]
    return DataLoader(data, N, collate_fn=lambda samples: transform(*default_collate(samples)))


def written_out(model, x, target, *, label_smoothing=0.0, weight=1.0, sample_weight=None):
    features = model.blocks(model.stem(x)).mean((2, 3))  # the input of fc
    s = torch.ones(N).double() if sample_weight is None else sample_weight
    smoothed = (1 - label_smoothing) * target + label_smoothing / CLASSES
    rows = -(weight * smoothed * model.fc(features).log_softmax(1)).sum(1)
    ce = (s * rows).sum() / s.sum()

    m = s[:, None] * target
    n = m.sum(0)
    H = m.T @ features.abs() / n[:, None]
    P = H / H.sum(0)
    gini = (1 - P.square().sum(0)).mean()
    q, pi = P.mean(1), n / n.sum()
    kl = (pi * (pi / q).log()).sum()
    return ce + 0.7 * gini + 0.2 * kl


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_value_and_gradients(backend, name, case):
    model = Net().double()
    given = {
        "label_smoothing": 0.1,
        "weight": torch.rand(CLASSES).double() + 0.1,
        "sample_weight": torch.rand(N).double(),
    }
    options = {key: given[key] for key in OPTIONS[case]}
    of_call = {key: options[key] for key in options if key == "sample_weight"}
    of_criterion = {key: options[key] for key in options if key != "sample_weight"}
    criterion = FusedDiscLoss.attach(
        model, gini_weight=0.7, kl_weight=0.2, backend=backend, **of_criterion
    )
    mixed = 0
    for images, target in batches(TRANSFORMS[name]):
        images, target = images.double(), target.double()
        mixed += int((target.count_nonzero(1) > 1).sum())
        model.zero_grad()
        loss = criterion(model(images), target, **of_call)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        expected = written_out(model, images, target, **options)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            gradients, [p.grad for p in model.parameters()], rtol=1e-8, atol=1e-12
        )
    assert mixed > 4  # the labels of these rows have two classes
