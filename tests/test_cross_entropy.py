"""The cross-entropy in fused_disc_loss equals F.cross_entropy for all its options."""

import math

import pytest
import torch
import torch.nn.functional as F

from cases import OFF, features, gradients, labels, soft_labels
from discfused import disc_terms, fused_disc_loss

N, D, C = 24, 10, 5


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 2, 77])
@pytest.mark.parametrize("tapped", [False, True], ids=["no features", "features"])
def test_equals_cross_entropy(backend, soft, weighted, smoothing, reduction, ignore_index, tapped):
    logits = torch.randn(N, C, requires_grad=True)
    target = soft_labels(N, C).float() if soft else labels(N, C)
    if soft and ignore_index >= 0:  # which neither has
        with pytest.raises(RuntimeError, match="ignore_index"):
            F.cross_entropy(logits, target, ignore_index=ignore_index)
        with pytest.raises(ValueError, match="ignore_index"):
            fused_disc_loss(logits, target, ignore_index=ignore_index, **OFF)
        return
    if not soft:
        target[::5] = ignore_index
    options = {
        "weight": torch.rand(C) if weighted else None,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": smoothing,
    }
    expected = F.cross_entropy(logits, target, **options)
    x = features(N, D).float() if tapped else None
    got = fused_disc_loss(logits, target, x, backend=backend, **OFF, **options)
    assert torch.equal(got, expected)
    assert torch.equal(*gradients(got, logits), *gradients(expected, logits))

    if not tapped:
        return
    # with the terms: CE + 0.5 gini + 0.25 kl, spread as the reduction says
    x.requires_grad_()
    got = fused_disc_loss(
        logits, target, x, gini_weight=0.5, kl_weight=0.25, backend=backend, **options
    )
    gini, kl = disc_terms(x, target, C, ignore_index=ignore_index, backend="reference")
    penalty = 0.5 * gini + 0.25 * kl
    if reduction == "sum":
        penalty = penalty * (N if soft else (target != ignore_index).sum())
    expected = F.cross_entropy(logits, target, **options) + penalty
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradients(got, logits, x), gradients(expected, logits, x), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("logits", "target"),
    [((C,), ()), ((N, C), (N,)), ((N, C, 4), (N, 4)), ((N, C, 2, 3), (N, 2, 3))],
    ids=str,
)
def test_any_shape_of_cross_entropy_passes_through(logits, target):
    logits, target = torch.randn(logits), torch.randint(0, C, target)
    assert torch.equal(fused_disc_loss(logits, target, **OFF), F.cross_entropy(logits, target))
    weight = torch.randn(C)  # negative class weights as well
    got = fused_disc_loss(logits, target, weight=weight, **OFF)
    assert torch.equal(got, F.cross_entropy(logits, target, weight))
    if logits.dim() > 1:
        soft = torch.rand(logits.shape)
        assert torch.equal(fused_disc_loss(logits, soft, **OFF), F.cross_entropy(logits, soft))


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sample_weight_is_repetition(backend, soft, reduction, smoothing):
    logits, x = torch.randn(N, C).double(), features(N, D)
    target = soft_labels(N, C) if soft else labels(N, C, "some ignored")
    k = torch.arange(N) % 3
    rows = torch.repeat_interleave(torch.arange(N), k)
    options = {
        "weight": torch.rand(C),
        "reduction": reduction,
        "label_smoothing": smoothing,
        "backend": backend,
    }
    weighted = fused_disc_loss(logits, target, x, sample_weight=k, **options)
    repeated = fused_disc_loss(logits[rows], target[rows], x[rows], **options)
    torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=1e-12)


def test_class_weights_act_on_cross_entropy_alone(backend):
    logits, x, y, weight = torch.randn(N, C), features(N, D).float(), labels(N, C), torch.randn(C)
    loss, terms = fused_disc_loss(logits, y, x, weight=weight, return_terms=True, backend=backend)
    gini, kl = disc_terms(x, y, C, backend=backend)
    assert (terms.ce, terms.gini, terms.kl) == (F.cross_entropy(logits, y, weight), gini, kl)
    torch.testing.assert_close(loss, terms.ce + 0.5 * gini + 0.5 * kl)


def test_sample_weight_zero_hides_an_infinite_loss():
    logits, target = torch.randn(N, C), labels(N, C)
    logits[0, target[0]] = -math.inf
    weight = torch.ones(N)
    weight[0] = 0
    assert fused_disc_loss(logits, target, **OFF).isinf()
    hidden = fused_disc_loss(logits, target, sample_weight=weight, **OFF)
    torch.testing.assert_close(hidden, F.cross_entropy(logits[1:], target[1:]))
