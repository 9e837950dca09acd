"""Mixup and CutMix from the loader to the gradients, with an attached criterion, against the loss
in plain PyTorch."""

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from discfused import FusedDiscLoss
from models import CLASSES, Net, gradients

v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is not installed")

N = 12


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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("transform", [v2.MixUp, v2.CutMix])
def test_value_and_gradients(backend, transform, weighted):
    model, of_criterion, of_call = Net().double(), {}, {}
    if weighted:
        of_criterion = {"label_smoothing": 0.1, "weight": torch.rand(CLASSES).double() + 0.1}
        of_call = {"sample_weight": torch.rand(N).double()}
    criterion = FusedDiscLoss.attach(
        model, gini_weight=0.7, kl_weight=0.2, backend=backend, **of_criterion
    )
    mixed = 0
    for images, target in batches(transform(num_classes=CLASSES)):
        images, target = images.double(), target.double()
        mixed += int((target.count_nonzero(1) > 1).sum())
        loss = criterion(model(images), target, **of_call)
        expected = written_out(model, images, target, **of_criterion, **of_call)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            gradients(loss, model), gradients(expected, model), rtol=1e-8, atol=1e-12
        )
    assert mixed > 4  # the labels of these rows have two classes
