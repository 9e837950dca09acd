"""Edge cases: logarithms of 0, empty sets, overflow and underflow.

These are tables of cases. test_facts.py has random batches.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from cases import features, labels, soft_labels, terms_and_gradients
from discfused import _ops, class_histogram, disc_terms, fused_disc_loss
from discfused.functional import GINI_WEIGHT, KL_WEIGHT
from formulas import answer

N, D, C = 40, 12, 6


# ---------------------------------------------------------------- logarithms of 0


@pytest.mark.parametrize(
    ("own", "others", "dtype"),
    [
        (1.0, -math.inf, torch.float32),
        (-math.inf, 1.0, torch.float32),
        (65504.0, -65504.0, torch.float16),
        (-65504.0, 65504.0, torch.float16),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_logits_at_the_ends_do_what_cross_entropy_does(backend, own, others, dtype, reduction):
    y, logits = labels(N, C), torch.full((N, C), others, dtype=dtype)
    logits[torch.arange(N), y] = own
    logits.requires_grad_()
    x = features(N, D, torch.float32).requires_grad_()

    expected = F.cross_entropy(logits.float(), y, reduction=reduction)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    loss = fused_disc_loss(logits, y, x, reduction=reduction, backend=backend)
    gini, kl = disc_terms(x.detach(), y, C, backend=backend)
    penalty = GINI_WEIGHT * gini + KL_WEIGHT * kl
    torch.testing.assert_close(loss, expected + penalty * (N if reduction == "sum" else 1))
    gradient, feature_gradient = torch.autograd.grad(loss.sum(), (logits, x))
    assert torch.equal(gradient, expected_gradient)
    assert feature_gradient.isfinite().all()


# Three classes; each of the 4 features fires for one class: number of features per class, and pi.
DIVERGENCES = {
    "p = 0": ([1, 1, 2], [0.5, 0.5, 0.0]),
    "q = 0": ([2, 2, 0], [0.25, 0.25, 0.5]),
    "both 0": ([1, 3, 0], [0.5, 0.5, 0.0]),
    "p = 0 and q = 0 elsewhere": ([0, 1, 3], [0.5, 0.5, 0.0]),
    "one class has all": ([4, 0, 0], [1.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("case", DIVERGENCES)
@pytest.mark.parametrize("num_classes", [3, 40])
def test_zeros_in_a_divergence(backend, case, num_classes):
    counts, pi = DIVERGENCES[case]
    q = [count / 4 for count in counts]
    expected = sum(a * math.log(a / max(b, 1e-10)) for a, b in zip(pi, q, strict=True) if a > 0)

    own = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    y = torch.arange(9) % 3
    x = (y[:, None] == own).double() * (1 + torch.rand(9, 1).double())
    options = {"prior": F.pad(torch.tensor(pi).double(), (0, num_classes - 3))}
    values, gradients = terms_and_gradients(x, y, backend, num_classes, **options)
    assert values[1].item() == pytest.approx(expected, abs=1e-12)
    written = answer(x, y, num_classes, **options)
    assert gradients.isfinite().all()
    torch.testing.assert_close(gradients, written.gradients, rtol=1e-9, atol=1e-12)
    # The same where a class or two share a feature: its gradient is not 0.
    x = x + 0.1 * torch.rand(9, 4).double() * (own > 0)
    values, gradients = terms_and_gradients(x, y, backend, num_classes, **options)
    written = answer(x, y, num_classes, **options)
    torch.testing.assert_close(values, written.values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients, written.gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["relu", "abs"])
def test_features_at_the_ends_of_half_precision_are_finite(backend, dtype, activation):
    x = torch.randn(N, D).sign().mul(torch.finfo(dtype).max).to(dtype)
    if dtype == torch.bfloat16:  # whose end is that of float32, where sums overflow
        x = x / 2**20
    values, gradients = terms_and_gradients(x, labels(N, C), backend, C, activation=activation)
    assert values.isfinite().all() and gradients.isfinite().all()


# ---------------------------------------------------------------- empty sets

EMPTY = {
    "no rows": (torch.zeros(0, D), torch.zeros(0, dtype=torch.long)),
    "all ignored": (torch.rand(N, D), torch.full((N,), -100)),
}


@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("num_classes", [C, 500])
@pytest.mark.parametrize("prior", ["batch", "uniform"])
@pytest.mark.parametrize("impurity", ["gini", "collision"])
def test_nothing_to_say(backend, case, num_classes, prior, impurity):
    x, y = EMPTY[case]
    options = {"prior": prior, "impurity": impurity}
    values, gradients = terms_and_gradients(x, y, backend, num_classes, **options)
    assert values.tolist() == [0, 0]
    assert not gradients.any()


@pytest.mark.parametrize("rows", [0, N])
def test_the_scalars_are_tensors_of_their_own(fused_backend, rows):
    operators, x = _ops.named(fused_backend), torch.rand(rows, D)
    index = operators.rows(labels(rows, C), None, C, -100, torch.float32)
    scalars = operators.terms(x, index, C, None, 0, 0, 0.5, 0.5)[:3]
    assert len({scalar.data_ptr() for scalar in scalars}) == 3


@pytest.mark.parametrize("num_classes", [C, 500])
@pytest.mark.parametrize("prior", ["batch", "uniform"])
@pytest.mark.parametrize("impurity", ["gini", "collision"])
def test_all_features_dead(backend, num_classes, prior, impurity):
    options = {"prior": prior, "impurity": impurity}
    x, y = torch.zeros(N, D), torch.arange(N) % C
    values, gradients = terms_and_gradients(x, y, backend, num_classes, **options)
    assert values.tolist() == [1, 0]
    assert not gradients.any()
    values, _ = terms_and_gradients(x, torch.full((N,), 2), backend, num_classes, **options)
    assert values.tolist() == [float(impurity == "gini"), 0]  # collision is 0 for one class


@pytest.mark.parametrize("case", ["no rows", "all ignored"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_cross_entropy_of_nothing_is_that_of_torch(backend, case, reduction, soft):
    n = 0 if case == "no rows" else N
    y = torch.zeros(n, C) if soft else torch.full((n,), -100)
    logits, x = torch.randn(n, C, requires_grad=True), torch.rand(n, D, requires_grad=True)
    expected = F.cross_entropy(logits, y, reduction=reduction)
    loss = fused_disc_loss(logits, y, x, reduction=reduction, backend=backend)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0, equal_nan=True)
    gradient, feature_gradient = torch.autograd.grad(loss.sum(), (logits, x))
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), logits)[0])
    assert not feature_gradient.any()


PRESENT = {  # which classes the rows are of: what a class that has no row, or one, does
    "one class absent": [0, 1, 3, 3, 1, 0],
    "all classes have one row": [3, 1, 0, 2],
    "one class has one row": [0, 0, 0, 1],
    "one class only": [2, 2, 2],
    "some ignored, a class only there": [-100, 0, 0, 1, -100],
}


@pytest.mark.parametrize("case", PRESENT)
@pytest.mark.parametrize("num_classes", [4, 100])
@pytest.mark.parametrize("prior", ["batch", "uniform"])
@pytest.mark.parametrize("impurity", ["gini", "collision"])
def test_classes_that_are_absent_or_alone(backend, case, num_classes, prior, impurity):
    y = torch.tensor(PRESENT[case])
    x, options = features(len(y), 3), {"prior": prior, "impurity": impurity}
    values, gradients = terms_and_gradients(x, y, backend, num_classes, **options)
    written = answer(x, y, num_classes, **options)
    torch.testing.assert_close(values, written.values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, written.gradients, rtol=1e-9, atol=1e-12)
    assert gradients.isfinite().all()


def test_cross_entropy_alone_sends_a_gradient_to_soft_labels(backend):
    soft, x = soft_labels(N, C).requires_grad_(), features(N, D).requires_grad_()
    logits = torch.randn(N, C).double()
    loss = fused_disc_loss(logits, soft, x, backend=backend)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, soft), soft)
    assert torch.equal(torch.autograd.grad(loss, soft)[0], expected)


@pytest.mark.parametrize("unit", [1e6, 1e-6])
@pytest.mark.parametrize("activation", ["relu", "abs"])
def test_units_of_features_and_weights_change_nothing(backend, activation, unit):
    """float32 can hold each mean, but not every product of two means."""
    x, y, n = features(40, 6, torch.float32), labels(40, C), torch.rand(40) + 0.5
    scale = 1e28 if unit > 1 else 1e-28
    found = []
    for factor, weight in ((1.0, n), (scale, n * unit)):
        leaf = (x * factor).requires_grad_()
        terms = disc_terms(leaf, y, C, sample_weight=weight, activation=activation, backend=backend)
        found.append([*terms, torch.autograd.grad(sum(terms), leaf)[0] * factor])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot flush them")
def test_subnormal_float16_where_subnormal_floats_are_flushed():
    """Else they would be 0 in this thread alone: the setting belongs to a thread."""
    x = torch.arange(2048, dtype=torch.int16).view(torch.float16).view(2, 1024)
    expected = x.float()
    torch.set_flush_denormal(True)
    try:
        H = class_histogram(x, torch.arange(2), 2, backend="cpu")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(H, expected)
