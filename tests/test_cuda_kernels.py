"""The CUDA backend without a GPU: its kernels compiled by the host's compiler (cuda_on_host.cpp).

This proves indices, masks, strides, the phases between barriers, and the arithmetic but for the
GPU's own roundings; not speed, nor what only a GPU can tell (test_gpu.py). The tests of the other
backends run here once more.
"""

import os
from pathlib import Path

import pytest
import torch

import test_edges
import test_facts
import test_parity
from cases import features, labels, soft_labels
from discfused import backends, class_histogram, disc_terms
from discfused.backends.cuda import CudaBackend
from members import check_members, hard
from test_loss import (  # noqa: F401 (collected here, with the fixture `backend` below)
    test_double_backward_is_an_error_of_the_fused_backends,
    test_no_input_is_written_to,
)
from test_parity import check_terms

ROOT = Path(__file__).resolve().parents[1]

for _module in (test_edges, test_facts, test_parity):
    globals().update({k: v for k, v in vars(_module).items() if k.startswith("test_")})


class OnHost(CudaBackend):
    device_type = "cpu"
    _kernels = None

    def unavailable(self):
        return None


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory):
    """The compiled module, as the backend "cuda" of CPU tensors."""
    import build_plan

    try:
        build_plan.find_compiler()
    except build_plan.LeftOut as why:
        pytest.skip(str(why))
    from torch.utils import cpp_extension

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the first one compiles, the others wait and load it
        folder = folder.parent
    folder = folder / "cuda_on_host"
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("MAX_JOBS", str(build_plan.jobs()))
    sources = [ROOT / f"csrc/cuda/{name}.cpp" for name in ("members", "ops", "stages")]
    module = cpp_extension.load(
        "cuda_on_host",
        [str(source) for source in (*sources, ROOT / "tests/cuda_on_host.cpp")],
        extra_include_paths=[str(ROOT / "csrc")],
        extra_cflags=["-O1", "-g0"],
        build_directory=str(folder),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnHost, "_kernels", module)
        patch.setitem(backends._BACKENDS, "cuda", OnHost())
        yield module


@pytest.fixture
def backend() -> str:
    return "cuda"


fused_backend = backend


def step(x, y, C, **options):
    """gini, kl and the gradient of a combination of them"""
    x = x.detach().requires_grad_()
    gini, kl = disc_terms(x, y, C, backend="cuda", **options)
    (0.7 * gini + 0.4 * kl).backward()
    return gini.detach(), kl.detach(), x.grad


# Beside the shapes of test_parity: several tiles of labels; many rows a slot, so that groups of
# threads share them, or even blocks; several blocks of columns; rows sorted instead of counted
LARGE = [
    (5000, 9, 40), (13000, 20, 1), (9001, 65, 2), (1200, 130, 1500), (600, 1500, 12),
    (5000, 10, 9000),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_shapes(shape, dtype):
    N, D, C = shape
    check_terms("cuda", features(N, D, dtype), labels(N, C, "some ignored"), C)


@pytest.mark.parametrize("share", [0.3, 0.97, 1.0])
def test_uneven_classes(share):
    """One class has most of the rows, and is left to all threads of a block; others have one."""
    N, C = 3000, 600
    y = torch.where(torch.arange(N) < share * N, 5, labels(N, C))[torch.randperm(N)]
    check_terms("cuda", features(N, 40, torch.float32), y, C)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("C", [12, 300])
def test_contiguous_rows_of_16_bytes(C, dtype):
    """The fast way, forward and back; every other layout is read column by column."""
    N, D = 200, 96
    x, y, options = features(N, D, dtype), labels(N, C), {"sample_weight": torch.rand(N)}
    check_terms("cuda", x, y, C, **options)
    slow = torch.cat([x, x], 1)[:, 1 : D + 1]
    slow.copy_(x)
    for fast, other in zip(step(x, y, C), step(slow, y, C), strict=True):
        torch.testing.assert_close(fast, other)


@pytest.mark.parametrize("shape", [(300, 70, 12), (90, 40, 500), (5000, 16, 3)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_neither_runs_nor_the_order_of_threads_and_blocks_change_a_bit(kernels, shape, soft):
    N, D, C = shape
    x, y = features(N, D, torch.float32), (soft_labels if soft else labels)(N, min(C, 50))
    first = step(x, y, min(C, 50) if soft else C)
    kernels.run_backwards(True)
    try:
        again = step(x, y, min(C, 50) if soft else C)
    finally:
        kernels.run_backwards(False)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [
        ((64, 40, 10), 3, 1),
        ((256, 512, 100), 4, 1),
        ((9000, 300, 2), 4, 1),  # a fold of the table's parts
        ((100, 300, 1000), 4, 1),
        ((1100, 1000, 2000), 4, 2),
        ((100, 300, None), 3, 2),
    ],
    ids=str,
)
def test_launches(kernels, shape, forward, backward):
    """Four forward, or fewer; one back, unless the sum over the rows takes another look at them."""
    N, D, C = shape
    x = features(N, D, torch.float32).requires_grad_()
    kernels.launches()
    if C is None:  # no terms
        result = class_histogram(x, labels(N, 7), 7, backend="cuda").square().sum()
        forward -= 1
    else:
        result = disc_terms(x, labels(N, C), C, backend="cuda").gini
    assert kernels.launches() == forward
    result.backward()
    assert kernels.launches() == backward


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(("N", "C"), [(23, 5), (23, 40), (3000, 7), (2100, 3000), (4100, 4200)])
def test_members(N, C):
    slots = min(N, C)
    got, _, _ = check_members(backends.get("cuda"), N, C)
    # What only this backend adds: each slot's rows lie together, in their own order.
    rows, _ = got.extra
    order, begin, end = rows.split([N, slots, slots])
    for s in range(slots):
        found = order[begin[s] : end[s]]
        assert torch.equal(found.long(), (got.slot == s).nonzero().flatten())


@pytest.mark.parametrize(("N", "C"), [(20, 5), (20, 40), (4100, 4200)])
def test_bad_labels_are_counted_and_reach_the_user(N, C):
    """No label out of range is followed; the error says how many there were."""
    y = labels(N, C)
    y[3], y[7], y[8], y[11] = C, -1, 2**40, -100
    stage, x = backends.get("cuda").members, features(N, 3, torch.float32)
    with pytest.raises(IndexError, match="3 labels of a batch"):
        stage(hard(y, C, torch.rand(C)), min(N, C), x, "relu")
    stage(hard(labels(N, C), C, torch.rand(C)), min(N, C), x, "relu")


@pytest.mark.parametrize("D", [7, 16])
def test_a_mean_that_is_given(D):
    y, x = labels(20, 6), features(20, D)
    backend = backends.get("cuda")
    members = backend.members(hard(y, 6), 6, x, "relu")
    mean = backend.histogram(x, members, "relu", True).mean + 0.1
    shifted = backend.histogram(x, members, "relu", True, mean=mean)
    torch.testing.assert_close(shifted.table, torch.eye(6).double()[y].T @ (x - mean).relu())
    assert torch.equal(shifted.mean, mean)


@pytest.mark.parametrize("activation", ["relu", "abs", "square", "softplus", "sigmoid"])
@pytest.mark.parametrize("N", [30, 9000])
def test_the_slope_of_the_table(activation, N):
    """F = -d H / d mu, and of it what backward needs (contract.Terms)"""
    C, D, backend = 4, 16, backends.get("cuda")
    x, y = features(N, D), labels(N, C)
    x[:, 1] = 0  # dead, where an activation can be 0
    x[:, 2] *= 1e-315  # and so is one whose mass is subnormal
    members = backend.members(hard(y, C), C, x, activation)
    found = backend.histogram(x, members, activation, True, slope=True)
    h = 1e-6
    up, down = (
        backend.histogram(x, members, activation, True, mean=found.mean + s).table for s in (h, -h)
    )
    expected = (down - up) / (2 * h)
    expected[:, 1:3] = found.slope[:, 1:3]  # where the activation has a kink
    torch.testing.assert_close(found.slope, expected, rtol=1e-4, atol=1e-2)

    terms = backend.terms(found, members.share, None, False, 1e-6, 1.0, 1.0)
    _, inverse, squares, projection, fourth, fifth = terms.feature_coef
    F, P, A = found.slope, found.table * inverse, terms.slot_coef[:, None]
    live = inverse != 0
    assert (live[1:3] == (activation in ("softplus", "sigmoid"))).all()
    torch.testing.assert_close(fourth, (squares * F.sum(0) - (F * P).sum(0)) * live)
    torch.testing.assert_close(fifth, ((A * F).sum(0) - projection * F.sum(0)) * live)


def test_wrong_tensors_are_refused(kernels):
    x, y, bad = features(8, 4), labels(8, 3), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="target has shape"):
        kernels.members(y[:5], None, None, 3, 3, -100, x, 0, bad)
    with pytest.raises(ValueError, match="slots is 5"):
        kernels.members(y, None, None, 3, 5, -100, x, 0, bad)
    with pytest.raises(TypeError, match="weight has dtype"):
        kernels.members(y, torch.ones(3, dtype=torch.half), None, 3, 3, -100, x, 0, bad)
    with pytest.raises(TypeError, match="features have dtype"):
        kernels.members(y, None, None, 3, 3, -100, x.long(), 0, bad)
