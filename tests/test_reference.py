"""The oracle against numbers small enough to recompute on paper, and against finite differences."""

import math

import pytest
import torch

from cases import OPTIONS, features, labels
from discfused import class_histogram, disc_terms

REFERENCE = {"backend": "reference"}

# Two classes, four samples, three features; means 2, 2, 1.
X = torch.tensor([[4.0, 0.0, 1.0], [4.0, 4.0, 1.0], [0.0, 0.0, 1.0], [0.0, 4.0, 1.0]]).double()
Y = torch.tensor([0, 0, 1, 1])


def test_histogram_on_paper():
    # centred: column 0 is (2, 2, -2, -2), column 1 is (-2, 2, -2, 2), column 2 is 0
    centred = class_histogram(X, Y, 2, **REFERENCE)
    assert centred.tolist() == [[4.0, 2.0, 0.0], [0.0, 2.0, 0.0]]
    raw = class_histogram(X, Y, 2, center=False, **REFERENCE)
    assert raw.tolist() == [[8.0, 4.0, 2.0], [0.0, 4.0, 2.0]]


def test_weights_on_paper():
    # row 0 counts twice: mean of column 0 is (2*4 + 4) / 5 = 2.4
    H = class_histogram(X, Y, 2, sample_weight=torch.tensor([2.0, 1, 1, 1]), **REFERENCE)
    torch.testing.assert_close(H[:, 0], torch.tensor([3 * 1.6, 0.0]).double())
    # class 1 weighs nothing: its rows count nowhere, so the mean of column 0 is 4
    H = class_histogram(X, Y, 2, weight=torch.tensor([1.0, 0.0]), **REFERENCE)
    assert H.tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]


def test_terms_on_paper():
    # column 0 fires for class 0 only (gini 0), column 1 for both alike (gini 1/2), column 2 is dead
    gini, kl = disc_terms(X, Y, 2, **REFERENCE)
    assert gini.item() == pytest.approx(0.25)
    # q = ((1 + 1/2) / 2, (0 + 1/2) / 2), pi = (1/2, 1/2)
    assert kl.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    reverse = disc_terms(X, Y, 2, kl_direction="reverse", **REFERENCE).kl
    assert reverse.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_prior_on_paper():
    kl = disc_terms(X, Y, 2, prior=torch.tensor([3.0, 1.0]), **REFERENCE).kl
    assert kl.item() == pytest.approx(0.0, abs=1e-15)  # q is (3/4, 1/4)


def test_absent_class_under_a_uniform_prior():
    # class 2 has q = 0, clamped to 1e-8
    kl = disc_terms(X, Y, 3, prior="uniform", **REFERENCE).kl
    expected = sum(math.log((1 / 3) / q) / 3 for q in (0.75, 0.25, 1e-8))
    assert kl.item() == pytest.approx(expected)


def test_soft_labels_on_paper():
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    H = class_histogram(X, soft, 2, **REFERENCE)
    assert H.tolist() == [[3.0, 2.0, 0.0], [1.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", [2.0, 0.0]),
        ("abs", [2.0, 2.0]),
        ("square", [4.0, 4.0]),
        ("softplus", [math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))]),
        ("sigmoid", [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))]),
    ],
)
def test_activations_on_paper(activation, expected):
    x = torch.tensor([[1.0], [-3.0]]).double()  # mean -1
    H = class_histogram(x, torch.tensor([0, 1]), 2, activation=activation, **REFERENCE)
    assert H.flatten().tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_gradcheck(case):
    N, D, C = 7, 4, 3
    x, y = features(N, D).requires_grad_(), labels(N, C, "some ignored")
    options = {**case.make(N, C), **REFERENCE}
    assert torch.autograd.gradcheck(lambda x: tuple(disc_terms(x, y, C, **options)), x)


def test_double_backward_works():
    x, y = features(7, 4).requires_grad_(), labels(7, 3)
    options = {"activation": "softplus", **REFERENCE}
    assert torch.autograd.gradgradcheck(lambda x: tuple(disc_terms(x, y, 3, **options)), x)
