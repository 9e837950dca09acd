"""The CUDA kernels without a GPU: compiled by the host's compiler (cuda_on_host.h).

This proves indices, masks, strides, barriers, and the arithmetic but for the GPU's own roundings;
not speed, nor what only a GPU can tell (test_gpu.py). The tests of the other backends run here once
more.
"""

import os
from pathlib import Path

import pytest
import torch

import build_plan
import test_edges
import test_facts
import test_parity
from benchmarks import cuda_launches
from cases import equal, features, labels, soft_labels, step
from discfused import _ops, backends, disc_terms
from discfused.backends.bad_labels import bad_labels
from discfused.backends.cuda import CudaBackend
from test_class_sums import test_sums_and_sizes  # noqa: F401 (collected here, too)
from test_loss import (  # noqa: F401 (collected here, with the fixture `backend` below)
    test_double_backward_is_an_error_of_the_fused_backends,
    test_no_input_is_written_to,
)
from test_parity import check_terms

ROOT = Path(__file__).resolve().parents[2]

for _module in (test_edges, test_facts, test_parity):
    globals().update({k: v for k, v in vars(_module).items() if k.startswith("test_")})


class OnHost(CudaBackend):
    device_type = "cpu"

    def unavailable(self):
        return None


@pytest.fixture(scope="module", autouse=True)
def on_host(tmp_path_factory):
    """The compiled kernels, as the backend "cuda" of CPU tensors."""
    why = backends.get("cpu").unavailable()
    if why is not None:
        pytest.skip(f"the autograd formula is in the compiled library: {why}")
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
    cpp_extension.load(
        "cuda_on_host",
        [str(ROOT / "csrc/cuda/ops.cpp"), str(ROOT / "tests/backends/cuda_on_host.cpp")],
        extra_include_paths=[str(ROOT / "csrc"), str(ROOT / "tests")],
        extra_cflags=["-O1", "-g0", "-Wno-unknown-pragmas", "-DDISCFUSED_CUDA_KEY=CPU"],
        build_directory=str(folder),
        is_python_module=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends._BACKENDS, "cuda", OnHost())
        yield torch.ops.cuda_on_host


@pytest.fixture(autouse=True)
def memory():
    """A number that nobody wrote is NaN: torch.empty fills what it makes."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def backend() -> str:
    return "cuda"


fused_backend = backend


# Beside the shapes of test_parity: slots that are cut into pieces, with and without remainders;
# more tiles of columns, ranges of slots and blocks of each than one
LARGE = [(700, 9, 3), (1500, 300, 1), (200, 520, 40), (900, 20, 5000)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_shapes(shape, dtype):
    N, D, C = shape
    check_terms("cuda", features(N, D, dtype), labels(N, C, "some ignored"), C)


@pytest.mark.parametrize("share", [0.3, 0.97, 1.0])
def test_uneven_classes(share):
    """One class has most of the rows; others have one."""
    N, C = 1000, 200
    y = torch.where(torch.arange(N) < share * N, 5, labels(N, C))[torch.randperm(N)]
    check_terms("cuda", features(N, 40, torch.float32), y, C)


ORDERS = [  # one run, or several; the first runs merged into longer ones before all are
    *((35, 1), (35, 35), (35, 36), (1024, 9), (1025, 9), (1500, 40), (1500, 2000)),
    pytest.param(33000, 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("N", "C"), ORDERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_order_of_rows(N, C, weighted, monkeypatch):
    """What csrc/cuda/kernels.h says of Rows."""
    y = labels(N, C, "some ignored")
    y[5], y[8], y[20], y[-1] = C, -1, 2**40, C
    w = torch.arange(N) % 4 / 2 if weighted else None  # halves: sums have no rounding
    counts = (y >= 0) & (y < C) & (torch.ones(N) if w is None else w).bool()
    weight = torch.where(counts, torch.ones(N) if w is None else w, 0).double()
    label, order = torch.where(counts, y, C).sort(stable=True)
    begin = torch.searchsorted(label, torch.arange(C + 1))
    sizes = torch.zeros(C + 1).double().index_add_(0, label, weight[order])[:C]
    present = begin.diff() > 0
    if C <= N:
        row_slot, offsets, size = label, begin, sizes
        slot_class = torch.where(present, torch.arange(C), -1)
    else:  # the slot of a class is where its rows begin; an empty one is where the next begins
        row_slot = torch.where(label < C, begin[label], N)
        opens = present.nonzero()[:, 0]
        at = begin[opens]
        slot_class = torch.full((N,), -1).index_copy_(0, at, opens)
        size = torch.zeros(N).double().index_copy_(0, at, sizes[opens])
        begins = torch.cat((at, begin[C:]))
        offsets = begins[torch.searchsorted(begins, torch.arange(N + 1)).clamp(max=len(at))]
    monkeypatch.setattr(type(bad_labels(y.device)), "check", lambda self: None)
    flag = bad_labels(y.device).flag
    index, weights = _ops.named("cuda").rows(y, w, C, -100, torch.float64)
    expected = torch.cat((order, row_slot, offsets, torch.tensor([N]), slot_class))
    assert torch.equal(index, expected)
    assert torch.equal(weights, torch.cat((size, weight.sum()[None], weight[order])))
    assert flag.item() == 4
    flag.zero_()


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_shapes_of_what_is_kept(soft, weighted):
    """torch.compile plans with empty_rows and empty_kept."""
    N, D, C = 20, 7, 50
    target, x, backend = (soft_labels if soft else labels)(N, C), torch.randn(N, D), OnHost()
    cuda = _ops.named("cuda")
    rows = cuda.rows(target, torch.ones(N) if weighted else None, C, -100, torch.float32)
    kept = cuda.terms(x, rows, C, None, 0, 0, 0.5, 0.5)[3]
    expected = (
        backend.empty_rows(target, C, torch.float32, weighted), backend.empty_kept(x, rows, C)
    )  # fmt: skip
    for tensors, empty in zip((rows, kept), expected, strict=True):
        assert [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in empty]


@pytest.mark.parametrize("shape", [(300, 70, 12), (90, 140, 500), (400, 16, 3)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_neither_runs_nor_the_order_of_threads_and_blocks_change_a_bit(on_host, shape, soft):
    """A barrier that is missing shows here."""
    N, D, C = shape
    C = min(C, 50) if soft else C
    x, y = features(N, D, torch.float32), (soft_labels if soft else labels)(N, C)
    first = step("cuda", x, y, C)
    on_host.run_backwards(True)
    try:
        again = step("cuda", x, y, C)
    finally:
        on_host.run_backwards(False)
    assert equal(first, again)


@pytest.mark.parametrize(
    ("shape", "launches"),
    [
        *(((256, 40, 8), 7), ((257, 40, 9), 8), ((256, 40, 7), 8), ((1500, 4, 9), 9)),
        *(((900, 300, 2000), 8), ((33000, 2, 2000), 10)),
        ((20, 40, None), 6),
    ],
    ids=str,
)
def test_launches(on_host, shape, launches):
    """Of forward and backward; beside them PyTorch sums up m of soft labels."""
    N, D, C = shape
    x, y = torch.randn(N, D), labels(N, C) if C else soft_labels(N, 5)
    before = len(on_host.launches())
    step("cuda", x, y, C or 5)
    found = on_host.launches()[before:]
    assert len(found) == launches
    if C:  # what docs/gpu-model.md is computed from
        forward, backward = cuda_launches.launches(N, D, C, 4)
        assert found == [launch.grid for launch in forward + backward]


def test_labels_out_of_range():
    y = labels(40, 10)
    y[[3, 7]] = torch.tensor([10, -1])
    with pytest.raises(
        IndexError, match=r"target\[\d+\] is .*\(2 labels are out of range\), in a batch on cpu"
    ):
        disc_terms(torch.randn(40, 5), y, 10, backend="cuda")
    disc_terms(torch.randn(40, 5), labels(40, 10), 10, backend="cuda")  # and then all is well


def test_the_prior_is_checked_before_it_is_used():
    """As a range of indices: beyond it, a GPU could not be used any more."""
    rows = torch.ops.discfused.cuda_rows_flagged(
        torch.arange(4), None, 9, -100, torch.float32, torch.zeros(1, dtype=torch.int32)
    )
    with pytest.raises(ValueError, match="prior"):
        torch.ops.discfused.cuda_terms(torch.rand(4, 3), rows, 9, torch.ones(2), 0, 0, 1.0, 1.0)
