"""The stages of the Triton backend under the interpreter, one by one, and how many launches they
take. test_triton.py runs this."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_triton.py, in a process where TRITON_INTERPRET=1",
                allow_module_level=True)  # fmt: skip

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import discfused
from cases import features, labels
from discfused import backends
from discfused._autograd import DiscTerms, terms_forward
from discfused.backends import soft, triton_runtime
from discfused.backends.bad_labels import bad_labels
from discfused.backends.contract import ACTIVATIONS, Pull, Settings
from discfused.reference import PHI
from members import check_members, hard
from test_parity import check_terms
from test_triton_interpreter import path, tiles  # noqa: F401 (fixtures)

BACKEND = backends.get("triton")


@pytest.mark.parametrize("C", [5, 40])
def test_members(path, C):  # noqa: F811
    N = 23
    got, x, n = check_members(BACKEND, N, C)
    # What only this backend adds: each slot's rows lie together, in their own order.
    (order, order_slot), span, moments = got.extra
    assert sorted(order.tolist()) == list(range(N))
    assert torch.equal(order_slot, got.slot[order.long()])
    for s in range(min(N, C)):
        start, count = span[:, s].tolist()
        rows = order[start : start + count]
        assert torch.equal(rows.long(), (got.slot == s).nonzero().flatten())
    if moments is not None:
        expected = torch.stack([(n[:, None] * x).sum(0), (n[:, None] * x.abs()).sum(0)])
        torch.testing.assert_close(moments.sum(0), expected)


@pytest.mark.parametrize("weights", ["none", "class", "sample"])
def test_share_of_every_slot(path, weights):  # noqa: F811
    y = labels(40, 6, "some ignored")
    weight = torch.rand(6) if weights == "class" else None
    sample_weight = torch.rand(40) if weights == "sample" else None
    x = features(40, 3, torch.float32)
    got = BACKEND.members(hard(y, 6, weight, sample_weight), 6, x, "relu")
    n = torch.where(y == -100, 0.0, 1.0)
    n = n if weight is None else n * weight[y.clamp(min=0)]
    n = n if sample_weight is None else n * sample_weight
    expected = torch.zeros(6).index_add_(0, y.clamp(min=0), n) / n.sum()
    torch.testing.assert_close(got.share, expected)


def test_histogram_about_a_given_mean(path):  # noqa: F811
    y, x = labels(20, 6), features(20, 7)
    members = BACKEND.members(hard(y, 6), 6, x, "relu")
    mean = BACKEND.histogram(x, members, "relu", True).mean + 0.1
    got = BACKEND.histogram(x, members, "relu", True, mean=mean)
    if got.carry is not None:
        BACKEND.complete(got)
    torch.testing.assert_close(got.table, torch.eye(6).double()[y].T @ (x - mean).relu())
    torch.testing.assert_close(got.mean, mean)


# ---------------------------------------------------------------- what backward needs of the mean

UNEVEN = {  # N = 60, C = 7: how rows may be spread over slots, whatever a chunk of rows is
    "one class": lambda y: torch.full_like(y, 3),
    "one large class": lambda y: torch.where(torch.arange(len(y)) < 41, 2, y),
    "two large classes": lambda y: torch.where(torch.arange(len(y)) < 30, 1, 5),
    "most ignored": lambda y: torch.where(torch.arange(len(y)) < 50, -100, y),
    "sorted": lambda y: y.sort().values,
}


@pytest.mark.parametrize("path", ["in two passes", "sorted"], indirect=True)
@pytest.mark.parametrize("uneven", UNEVEN)
def test_uneven_classes(path, uneven):  # noqa: F811
    """Slots cut by chunks of rows: their sums are put together by terms, or by complete."""
    y, x = UNEVEN[uneven](labels(60, 7)), features(60, 19)
    n = torch.rand(60).double()
    check_terms("triton", x, y, 7, sample_weight=n)
    members = BACKEND.members(hard(y, 7, None, n), 7, x, "relu")
    got = BACKEND.histogram(x, members, "relu", True, slope=True)
    cut = (got.carry[1] >= 0).sum()
    assert cut == 0 if uneven == "most ignored" else cut > 0 or uneven == "sorted"
    BACKEND.complete(got)
    m = torch.where(y >= 0, n, 0)[:, None] * torch.eye(7).double()[y.clamp(min=0)]
    z = x - (m.sum(1, keepdim=True) * x).sum(0) / m.sum()
    torch.testing.assert_close(got.table, m.T @ z.relu())
    torch.testing.assert_close(got.slope, m.T @ (z > 0).double())


@pytest.mark.parametrize("path", ["in two passes", "sorted"], indirect=True)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slope_and_what_is_left_of_it(path, activation):  # noqa: F811
    """The slope is -d H / d mean, and rows 4 and 5 of the coefficients are those of the contract:
    sum_c F_cj G_cj for any upstream gradient."""
    N, D, C = 40, 19, 6
    y, x, n = labels(N, C, "some ignored"), features(N, D), torch.rand(N).double()
    x[:, 2] *= 1e-310  # subnormal
    members = BACKEND.members(hard(y, C, None, n), C, x, activation)
    H = BACKEND.histogram(x, members, activation, True, slope=True)
    terms = BACKEND.terms(H, members.share, None, False, 1e-6, 1.0, 1.0)  # completes H

    m = torch.where(y >= 0, n, 0)[:, None] * torch.eye(C).double()[y.clamp(min=0)]
    z = (x - H.mean).requires_grad_()
    (derivative,) = torch.autograd.grad(PHI[activation](z).sum(), z)
    torch.testing.assert_close(H.slope, m.T @ derivative)

    g1, g2 = torch.tensor([0.7, -0.4]).double()
    pull = Pull(terms.feature_coef, terms.slot_coef, g1, g2, 2, 3)
    expected = (H.slope * soft.table_gradient(H.table, pull)).sum(0)
    outer, *_, of_gini, of_kl = terms.feature_coef
    got = outer * (2 * 2 * g1 * of_gini + 3 * g2 * of_kl)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    dead = outer == 0
    # the constant and the subnormal feature
    assert dead[1:3].all() or activation in ("softplus", "sigmoid")
    assert (terms.feature_coef[:, dead] == 0).all()


def test_terms_without_a_slope_leave_no_hole():
    H = BACKEND.histogram(
        features(9, 5), BACKEND.members(hard(labels(9, 3), 3), 3, features(9, 5), "relu"),
        "relu", True,
    )  # fmt: skip
    assert H.slope is None
    coef = BACKEND.terms(H, torch.full((3,), 1 / 3).double(), None, False, 1e-6, 1, 1).feature_coef
    assert coef.shape == (BACKEND.coef_rows, 5) and (coef[4:] == 0).all()


# ---------------------------------------------------------------- launches

NO_LAUNCH = ("empty", "view", "detach", "alias", "select", "slice", "expand", "as_strided", "t.")


class Launches(TorchDispatchMode):
    """What would be launched on a GPU: kernels of Triton, and PyTorch's ops."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names = []
        kernels = triton_runtime.kernels()
        for name in kernels.__all__:
            if name.endswith("_kernel"):
                counted = Counted(getattr(kernels, name), name.removesuffix("_kernel"), self.names)
                monkeypatch.setattr(kernels, name, counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if not any(word in name for word in NO_LAUNCH):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Counted:
    def __init__(self, kernel, name, names):
        self.kernel, self.name, self.names = kernel, name, names

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.names.append(self.name)
            with _disable_current_modes():
                self.kernel[grid](*args, **options)

        return launch


FORWARD = {
    "in registers": ["members", "whole_columns", "feature_terms", "class_terms"],
    "in two passes": ["members", "slot_rows", "feature_terms", "class_terms"],
}


@pytest.mark.parametrize("path", list(FORWARD), indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("y", ["random", "one class"])
@pytest.mark.parametrize("center", [True, False], ids=["centred", "raw"])
@pytest.mark.parametrize("C", [10, 40])
def test_four_launches_forward_and_one_backward(path, dtype, y, center, C, monkeypatch, request):  # noqa: F811
    """Everything between features and the terms, and back: with PyTorch's own kernels counted."""
    N, D = 40, 19
    x, y = features(N, D, dtype).requires_grad_(), labels(N, C, y)
    settings = Settings("relu", center, False, 1e-6)
    expected = FORWARD[request.node.callspec.params["path"]]
    bad_labels(x.device)  # made once a process
    with Launches(monkeypatch) as launched:
        penalty, _, _ = DiscTerms.apply(x, hard(y, C), None, settings, BACKEND, 0.3, 0.7)
        assert launched.names == expected
    upstream = torch.ones_like(penalty)
    with launched:
        launched.names.clear()
        torch.autograd.grad(penalty, x, upstream)
        assert launched.names == ["gradient"]
        launched.names.clear()
        x = x.detach()
        arguments = BACKEND, x, hard(y, C), None, settings, 0.3, 0.7
        terms_forward(*arguments, for_backward=False, save=False)
        assert launched.names == expected


@pytest.mark.parametrize("path", ["in two passes"], indirect=True)
def test_one_launch_more_where_the_slope_would_cost_more_than_it_saves(path, monkeypatch):  # noqa: F811
    """More classes than samples."""
    x, y = features(20, 19).requires_grad_(), labels(20, 50)
    settings = Settings("relu", True, False, 1e-6)
    penalty, *_ = DiscTerms.apply(x, hard(y, 50), None, settings, BACKEND, 0.3, 0.7)
    upstream = torch.ones_like(penalty)
    with Launches(monkeypatch) as launched:
        torch.autograd.grad(penalty, x, upstream)
        assert launched.names == ["gradient_sum", "gradient"]


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize("C", [5, 40])
def test_bad_labels_are_counted_and_reach_the_user(path, C):  # noqa: F811
    """No label out of range is followed; the error says how many there were."""
    y = labels(20, C)
    y[3], y[7], y[8], y[11] = C, -1, 2**40, -100
    x = features(20, 3, torch.float32)
    bad, good = (hard(target, C, torch.rand(C)) for target in (y, labels(20, C)))
    with pytest.raises(IndexError, match="3 labels of a batch"):
        BACKEND.members(bad, min(20, C), x, "relu")
    BACKEND.members(good, min(20, C), x, "relu")


def test_table_gradient_of_soft_labels_is_that_of_the_contract():
    H = torch.rand(4, 3).double()
    coef, A = torch.rand(6, 3).double(), torch.rand(4).double()
    pull = Pull(coef, A, torch.tensor(2.0), torch.tensor(3.0), 0.5, 0.25)
    scale, inverse, squares, projection, *_ = coef
    P = H * inverse
    expected = scale * (2 * (squares - P) + 0.75 * (A[:, None] - projection))
    torch.testing.assert_close(soft.table_gradient(H, pull), expected)


def test_warmup_runs_every_stage():
    discfused.warmup(
        shapes=[(9, 5), (4, 3)], dtypes=[torch.float32, torch.bfloat16], num_classes=6,
        device="cpu",
    )  # fmt: skip
