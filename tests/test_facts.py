"""What must be true of the terms whatever computes them: each can be broken silently."""

import math

import pytest
import torch

from cases import LABELS, VALUE, features, labels, soft_labels
from discfused import class_histogram, disc_terms, fused_disc_loss

N, D, C = 40, 12, 6


def terms_and_gradients(x, target, backend, num_classes=C, **options):
    x = x.detach().requires_grad_()
    gini, kl = disc_terms(x, target, num_classes, backend=backend, **options)
    gradients = [torch.autograd.grad(term, x, retain_graph=True)[0] for term in (gini, kl)]
    return torch.stack([gini, kl]).detach(), torch.stack(gradients)


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds(backend, kind, direction, dtype):
    gini, kl = disc_terms(
        features(N, D, dtype), labels(N, C, kind), C, kl_direction=direction, backend=backend
    )
    assert 0 <= gini <= 1 - 1 / C + VALUE[dtype].rtol
    assert 0 <= kl < math.inf


def test_gini_is_zero_iff_every_feature_fires_for_one_class(backend):
    x = torch.eye(C, dtype=torch.float64).repeat(5, 1)
    y = torch.arange(C).repeat(5)
    gini, kl = disc_terms(x, y, C, backend=backend)
    close(gini, torch.zeros_like(gini))
    close(kl, torch.zeros_like(kl))  # each class has one feature: q = pi, too
    x[0, 1] = 1.0
    assert disc_terms(x, y, C, backend=backend).gini > 1e-3


def test_kl_is_zero_iff_features_match_the_prior(backend):
    x = torch.eye(C, dtype=torch.float64).repeat(5, 1)[:, 1:]  # no feature speaks for class 0
    y = torch.arange(C).repeat(5)
    gini, kl = disc_terms(x, y, C, backend=backend)
    assert gini < 1e-12 and kl > 1


@pytest.mark.parametrize("activation", ["relu", "abs", "square"])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 7.0, 1e12])
def test_scale_of_a_feature_changes_nothing(backend, activation, scale):
    x, y = features(N, D), labels(N, C)
    factor = torch.where(torch.arange(D) % 2 == 0, scale, 1.0).double()
    values, gradients = terms_and_gradients(x, y, backend, activation=activation)
    scaled, scaled_gradients = terms_and_gradients(x * factor, y, backend, activation=activation)
    close(scaled, values)
    close(scaled_gradients * factor, gradients)
    close((x * gradients).sum(1), torch.zeros(2, D).double())


def test_shift_of_a_centred_feature_changes_nothing(backend):
    x, y = features(N, D), labels(N, C)
    values, gradients = terms_and_gradients(x, y, backend)
    shifted, shifted_gradients = terms_and_gradients(x + 3 * torch.rand(D), y, backend)
    close(shifted, values)
    close(shifted_gradients, gradients, atol=1e-10)
    close(gradients.sum(1), torch.zeros(2, D).double())


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_sample_weight_is_repetition(backend, soft):
    x, y = features(N, D), soft_labels(N, C) if soft else labels(N, C, "some ignored")
    k = torch.arange(N) % 4
    weighted, gradients = terms_and_gradients(x, y, backend, sample_weight=k)
    rows = torch.repeat_interleave(torch.arange(N), k)
    repeated, repeated_gradients = terms_and_gradients(x[rows], y[rows], backend)
    close(weighted, repeated)
    close(gradients, torch.zeros_like(gradients).index_add(1, rows, repeated_gradients))


@pytest.mark.parametrize("num_classes", [C, 500])
def test_permutations_and_stacking_change_nothing(backend, num_classes):
    x, y = features(N, D), labels(N, num_classes)
    values, gradients = terms_and_gradients(x, y, backend, num_classes)
    rows, columns, names = (torch.randperm(n) for n in (N, D, num_classes))
    permuted, permuted_gradients = terms_and_gradients(
        x[rows][:, columns], names[y[rows]], backend, num_classes
    )
    close(permuted, values)
    close(permuted_gradients, gradients[:, rows][:, :, columns])
    stacked, stacked_gradients = terms_and_gradients(
        torch.cat([x, x]), torch.cat([y, y]), backend, num_classes
    )
    close(stacked, values)
    close(stacked_gradients[:, :N] * 2, gradients)


def test_one_hot_equals_hard(backend):
    x, y, weight = features(N, D), labels(N, C), torch.rand(C) + 0.1
    one_hot = torch.eye(C, dtype=torch.float64)[y]
    for options in ({}, {"weight": weight, "sample_weight": torch.rand(N), "prior": "uniform"}):
        hard = terms_and_gradients(x, y, backend, **options)
        soft = terms_and_gradients(x, one_hot, backend, **options)
        for a, b in zip(hard, soft, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_histogram_of_a_batch_is_the_sum_of_its_parts(backend):
    x, y = features(N, D), labels(N, C)
    parts = [
        class_histogram(x[rows], y[rows], C, center=False, backend=backend)
        for rows in (slice(0, 7), slice(7, 7), slice(7, N))
    ]
    close(sum(parts), class_histogram(x, y, C, center=False, backend=backend))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("center", [True, False], ids=["centred", "raw"])
@pytest.mark.parametrize("num_classes", [C, 500])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_bad_number_is_never_a_plausible_result(backend, value, center, num_classes, soft):
    x = features(N, D)
    y = soft_labels(N, num_classes) if soft else labels(N, num_classes)
    x[3, 4] = value
    gini, kl = disc_terms(x, y, num_classes, center=center, backend=backend)
    assert gini.isnan() and kl.isnan()
    # unless the row does not count
    weight = torch.ones(N)
    weight[3] = 0
    masked = terms_and_gradients(x, y, backend, num_classes, center=center, sample_weight=weight)
    rest = torch.arange(N) != 3
    expected = terms_and_gradients(x[rest], y[rest], backend, num_classes, center=center)
    close(masked[0], expected[0])
    close(masked[1][:, rest], expected[1])
    assert (masked[1][:, 3] == 0).all()


def test_extreme_half_precision_features_are_finite(backend):
    x = torch.randn(N, D).sign().mul(65504).half()
    values, gradients = terms_and_gradients(x, labels(N, C), backend)
    assert values.isfinite().all() and gradients.isfinite().all()


EMPTY = {
    "no rows": (torch.zeros(0, D), torch.zeros(0, dtype=torch.long)),
    "all ignored": (torch.rand(N, D), torch.full((N,), -100)),
    "one row": (torch.rand(1, D), torch.tensor([2])),
    "all features constant": (torch.rand(D).expand(N, D), torch.arange(N) % C),
    "all features zero": (torch.zeros(N, D), torch.arange(N) % C),
}


@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("num_classes", [C, 500])
@pytest.mark.parametrize("prior", ["batch", "uniform"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_nothing_to_say(backend, case, num_classes, prior, direction):
    x, y = EMPTY[case]
    values, gradients = terms_and_gradients(
        x, y, backend, num_classes, prior=prior, kl_direction=direction
    )
    assert values.tolist() == [0, 0]
    assert not gradients.any()


def test_one_class_only(backend):
    gini, kl = disc_terms(features(N, D), torch.full((N,), 3), C, backend=backend)
    close(torch.stack([gini, kl]), torch.zeros(2).double())


def test_every_class_absent_but_some(backend):
    """The normal case: with 100 classes and 128 samples some 28 classes are absent."""
    y = torch.randint(0, 100, (128,))
    values, gradients = terms_and_gradients(features(128, D), y, backend, 100)
    assert values.isfinite().all() and gradients.isfinite().all() and gradients.any()


def test_dead_features_get_no_gradient(backend):
    x = features(N, D)  # column 1 is constant
    _, gradients = terms_and_gradients(x, labels(N, C), backend)
    assert not gradients[:, :, 1].any()
    assert gradients[:, :, 0].any()


def test_no_gradient_flows_to_soft_labels_from_the_terms(backend):
    soft = soft_labels(N, C).requires_grad_()
    x = features(N, D).requires_grad_()
    gini, _ = disc_terms(x, soft, C, backend=backend)
    assert torch.autograd.grad(gini, soft, allow_unused=True) == (None,)
    loss = fused_disc_loss(torch.randn(N, C).double(), soft, x, backend=backend)
    assert torch.autograd.grad(loss, soft)[0].any()  # cross-entropy's, as in PyTorch
