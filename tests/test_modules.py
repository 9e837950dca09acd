"""FusedDiscLoss: options, state, outputs of models, the Trainer of transformers."""

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from discfused import FusedDiscLoss, fused_disc_loss

N, D, C = 12, 7, 4
LOGITS, FEATURES, TARGET = torch.randn(N, C), torch.rand(N, D), torch.arange(N) % C


TOKENS = (FEATURES - 0.5).unsqueeze(1).expand(N, 3, D) * torch.tensor([1.0, 2, 3]).view(3, 1)
OPTIONS = {
    "gini_weight": 0.7,
    "kl_weight": 0.2,
    "weight": torch.rand(C),
    "ignore_index": 1,
    "reduction": "sum",
    "label_smoothing": 0.1,
    "activation": "relu",
    "impurity": "collision",
    "prior": torch.rand(C),
    "feature_dim": -1,
}


def test_every_option_reaches_the_function(backend):
    options = {**OPTIONS, "backend": backend}
    sample_weight = torch.rand(N)
    criterion = FusedDiscLoss(**options)
    got = criterion(LOGITS, TARGET, TOKENS, sample_weight=sample_weight)
    expected = fused_disc_loss(LOGITS, TARGET, TOKENS, sample_weight=sample_weight, **options)
    assert got == expected
    for name in OPTIONS:  # and each changes the loss
        fewer = {key: value for key, value in options.items() if key != name}
        try:
            other = FusedDiscLoss(**fewer)(LOGITS, TARGET, TOKENS, sample_weight=sample_weight)
        except ValueError:
            continue
        assert other != expected, name


def test_terms_are_those_of_the_last_call():
    criterion = FusedDiscLoss(gini_weight=1.0, kl_weight=2.0)
    assert criterion.terms is None
    loss = criterion(LOGITS.clone().requires_grad_(), TARGET, FEATURES.clone().requires_grad_())
    ce, gini, kl = criterion.terms
    torch.testing.assert_close(loss.detach(), ce + gini + 2 * kl)
    torch.testing.assert_close(ce, F.cross_entropy(LOGITS, TARGET))
    assert not any(term.requires_grad for term in criterion.terms)


@pytest.mark.parametrize("features", [None, FEATURES])
def test_a_loss_that_is_scaled_in_place_keeps_its_terms(features):
    """Also while both weights are 0, and the loss is the cross-entropy."""
    criterion = FusedDiscLoss(gini_weight=0, kl_weight=0)
    loss = criterion(LOGITS, TARGET, features)
    loss /= 2
    assert criterion.terms.ce == 2 * loss


def test_options_are_attributes_that_can_be_set():
    criterion, so_far = FusedDiscLoss(), {}
    before = criterion(LOGITS, TARGET, TOKENS)
    for name, value in OPTIONS.items():
        setattr(criterion, name, value)
        so_far[name] = value
        assert getattr(criterion, name) is value
        after = criterion(LOGITS, TARGET, TOKENS)
        assert after == fused_disc_loss(LOGITS, TARGET, TOKENS, **so_far) != before, name
        before = after
    criterion.reduction = "median"
    with pytest.raises(ValueError, match="reduction is 'median'"):
        criterion(LOGITS, TARGET, FEATURES)


def test_no_parameters_no_state():
    criterion = FusedDiscLoss(weight=torch.rand(C), prior=torch.rand(C))
    assert not list(criterion.parameters()) and not criterion.state_dict()
    assert criterion.double().weight.dtype == torch.float64
    assert criterion.to("meta").prior.device.type == "meta"


def test_copies_and_pickles_give_the_same_loss():
    criterion = FusedDiscLoss(weight=torch.rand(C), prior="uniform", activation="relu")
    expected = criterion(LOGITS, TARGET, FEATURES)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert twin(LOGITS, TARGET, FEATURES) == expected


def test_repr_shows_the_options():
    assert "gini_weight=0.5" in repr(FusedDiscLoss(gini_weight=0.5))
    assert "impurity='collision'" in repr(FusedDiscLoss(impurity="collision"))


class Outputs(NamedTuple):
    """Outputs like those of GoogLeNet and transformers."""

    logits: torch.Tensor
    aux_logits: torch.Tensor


def test_what_a_model_gives_out_may_be_passed():
    head = torch.nn.Linear(D, C)
    criterion = FusedDiscLoss.attach(head)
    expected = criterion(head(FEATURES), TARGET)
    outputs = Outputs(head(FEATURES), torch.randn(N, C))
    assert criterion(outputs, TARGET) == expected
    assert FusedDiscLoss()(outputs, TARGET, FEATURES) == expected


def test_the_names_of_cross_entropy():
    criterion = FusedDiscLoss(gini_weight=0, kl_weight=0)
    assert criterion(input=LOGITS, target=TARGET) == F.cross_entropy(input=LOGITS, target=TARGET)
    with pytest.raises(TypeError, match="logits and input are both given"):
        criterion(LOGITS, TARGET, input=LOGITS)
    with pytest.raises(TypeError, match="logits is a NoneType"):
        criterion(target=TARGET)


def test_unknown_options_are_refused_at_construction():
    for make in (FusedDiscLoss, lambda **options: FusedDiscLoss.attach(torch.nn.ReLU(), **options)):
        with pytest.raises(TypeError, match="center"):
            make(center=True)


@pytest.mark.parametrize("labels", ["hard", "soft", "another ignore_index"])
def test_micro_batches_of_a_trainer(labels):
    """The gradient of the mean over all samples that count, with terms weighted by size."""
    soft = torch.nn.functional.one_hot(TARGET, C).float()
    target = soft if labels == "soft" else TARGET.clone()
    if labels == "hard":
        target[[0, 7, 8]] = -100
    options = {"ignore_index": 0} if labels == "another ignore_index" else {}
    criterion = FusedDiscLoss(**options)
    parts = [slice(0, 5), slice(5, N)]
    counts = [int(target[p].ne(-100).sum()) for p in parts]  # as the Trainer counts
    losses = [criterion(LOGITS[p], target[p], FEATURES[p]) for p in parts]
    expected = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)

    heads = [_Fixed(LOGITS[p], FEATURES[p]) for p in parts]
    total = 0
    for head, part in zip(heads, parts, strict=True):
        criterion = FusedDiscLoss.attach(head, "features", **options)
        for number in (sum(counts), torch.tensor(sum(counts))):
            value = criterion.compute_loss_func(head(), target[part], num_items_in_batch=number)
        total = total + value
        assert criterion.compute_loss_func(head(), target[part]) == criterion(head(), target[part])
    torch.testing.assert_close(total, expected)
    criterion.reduction = "sum"
    with pytest.raises(ValueError, match="reduction is 'sum', expected 'mean' with a Trainer"):
        criterion.compute_loss_func(head(), target[part])


class _Fixed(torch.nn.Module):
    """A model that returns given logits and has given features."""

    def __init__(self, logits, values):
        super().__init__()
        self.logits = torch.nn.Parameter(logits.clone())
        self.values = torch.nn.Parameter(values.clone())
        self.features = torch.nn.Identity()

    def forward(self):
        return Outputs(self.logits + 0 * self.features(self.values).sum(), self.logits)
