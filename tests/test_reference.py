"""The terms against results computed by hand, and double backward of the reference."""

import math

import pytest
import torch

from cases import features, labels
from discfused import class_histogram, disc_terms

# Four samples, three features, two classes: class 0 has two rows, class 1 two.
X = torch.tensor([[4.0, 1.0, 0.0], [-2.0, 3.0, 0.0], [0.0, 1.0, 0.0], [0.0, -5.0, 0.0]]).double()
Y = torch.tensor([0, 0, 1, 1])

# |x|, averaged over the rows of a class: column 0 is (3, 0), column 1 (2, 3), column 2 dead.
H = [[3.0, 2.0, 0.0], [0.0, 3.0, 0.0]]
# P: column 0 (1, 0), column 1 (2/5, 3/5). Sums of squares: 1 and 13/25.
GINI = (0 + 12 / 25 + 1) / 3  # a dead feature counts as 1
COLLISION = (0 + math.log(25 / 13) / math.log(2) + 1) / 3
# q = ((1 + 2/5) / 2, (0 + 3/5) / 2) = (7/10, 3/10), the mean over the two live features
KL = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3)


def test_on_paper(backend):
    assert class_histogram(X, Y, 2, backend=backend).tolist() == H
    gini, kl = disc_terms(X, Y, 2, backend=backend)
    assert gini.item() == pytest.approx(GINI, rel=1e-14)
    assert kl.item() == pytest.approx(KL, rel=1e-14)
    collision, other = disc_terms(X, Y, 2, impurity="collision", backend=backend)
    assert collision.item() == pytest.approx(COLLISION, rel=1e-14) and other == kl


def test_relu_on_paper(backend):
    # max(x, 0): column 0 is (2, 0), column 1 (2, 1/2)
    H = class_histogram(X, Y, 2, activation="relu", backend=backend)
    assert H.tolist() == [[2.0, 2.0, 0.0], [0.0, 0.5, 0.0]]


def test_weights_on_paper(backend):
    # row 0 counts three times: column 0 of class 0 is (3 * 4 + 2) / 4
    H = class_histogram(X, Y, 2, sample_weight=torch.tensor([3.0, 1, 1, 1]), backend=backend)
    assert H.tolist() == [[3.5, 1.5, 0.0], [0.0, 3.0, 0.0]]


def test_soft_labels_on_paper(backend):
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    # n = (1.5, 2.5); column 0: (0.5 * 4 + 2) / 1.5 and 0.5 * 4 / 2.5
    H = class_histogram(X, soft, 2, backend=backend)
    torch.testing.assert_close(H[:, 0], torch.tensor([8 / 3, 4 / 5]).double())


def test_prior_on_paper(backend):
    kl = disc_terms(X, Y, 2, prior=torch.tensor([7.0, 3.0]), backend=backend).kl
    assert kl.item() == pytest.approx(0.0, abs=1e-15)  # q is (7/10, 3/10)
    # class 2 is absent: q = 0, clamped to 1e-10
    kl = disc_terms(X, Y, 3, prior="uniform", backend=backend).kl
    expected = sum(math.log((1 / 3) / q) / 3 for q in (0.7, 0.3, 1e-10))
    assert kl.item() == pytest.approx(expected)


def test_double_backward_works():
    x, y = features(7, 4)[:, [0, 2, 3]].requires_grad_(), labels(7, 3)
    assert torch.autograd.gradgradcheck(
        lambda x: tuple(disc_terms(x, y, 3, backend="reference")), x
    )
