"""The Triton kernels on CPU tensors, against the reference in float64. test_triton.py runs this.

The interpreter proves mathematics, masks and strides; not compilation (test_triton_compile.py),
races or speed (test_gpu.py).
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_triton.py, in a process where TRITON_INTERPRET=1",
                allow_module_level=True)  # fmt: skip

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import discfused
from cases import LABELS, LAYOUTS, OPTIONS, features, labels, soft_labels
from discfused import _ops, backends, disc_terms, fused_disc_loss
from discfused._definitions import accumulation_dtype
from discfused.backends import triton_backend, triton_runtime
from discfused.backends.bad_labels import bad_labels
from test_edges import (  # noqa: F401 (collected here, with the fixture `backend` below)
    test_all_features_dead,
    test_classes_that_are_absent_or_alone,
    test_features_at_the_ends_of_half_precision_are_finite,
    test_nothing_to_say,
    test_units_of_features_and_weights_change_nothing,
    test_zeros_in_a_divergence,
)
from test_facts import *  # noqa: F403 (every fact)
from test_loss import (  # noqa: F401
    test_double_backward_is_an_error_of_the_fused_backends,
    test_no_input_is_written_to,
)
from test_parity import (  # noqa: F401
    check_histogram,
    check_terms,
    test_class_histogram_of_a_transposed_upstream_gradient,
    test_strided_labels,
    test_upstream_gradient_survives_half_precision,
)

# The interpreter takes a millisecond for each statement of each program: small shapes, few cases.
# N, D, C: ones, odd sizes, more classes than samples; in all tiles below more than one block
SHAPES = [(1, 1, 1), (2, 1, 2), (5, 3, 1), (7, 5, 3), (37, 19, 10), (16, 33, 40), (3, 17, 1000)]

# So small that every loop runs more than once, and slots are cut. The product of matrices wants 16.
COLUMNS = {"COLS": 8, "LINES": 2}
TILES = {
    "rows": ({"ROWS": 16, "CLASSES": 16},),
    "sizes": {"ROWS": 4},
    "table": {"ROWS": 2, "COLS": 16},
    "gradient": {"ROWS": 2, "COLS": 16},
    "columns": ({"SLOTS": 4, **COLUMNS}, {"SLOTS": 8, **COLUMNS}),
    "fold": {"SLOTS": 4, "COLS": 16, "LINES": 2},
    "slots": {"SLOTS": 4, "COLS": 16},
    "finish": {"LINES": 2, "COLS": 16},
    "soft_table": {"ROWS": 16, "INNER": 16, "COLS": 16},
    "soft_gradient": {"ROWS": 16, "INNER": 16, "COLS": 16},
}


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    kernels = triton_runtime.kernels()
    monkeypatch.setattr(kernels, "BLOCKS", dict.fromkeys((torch.float32, torch.float64), TILES))
    monkeypatch.setattr(kernels, "PIECES", 16)


@pytest.fixture(params=["counted", "sorted"])
def path(request, monkeypatch):
    """How rows are put in order."""
    if request.param == "sorted":
        monkeypatch.setattr(triton_backend, "SCAN_ROWS", 0)


@pytest.fixture
def backend() -> str:
    return "triton"


fused_backend = backend


def test_it_runs_here_by_name_only():
    assert backends.get("triton").unavailable() is None
    assert backends.resolve("cpu", "triton") == "triton"
    assert backends.preferred("cpu")[0] != "triton"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(path, shape):
    N, D, C = shape
    check_terms("triton", features(N, D), labels(N, C), C)


@pytest.mark.parametrize("shape", [(7, 5, 3), (3, 5, 50), (20, 17, 6)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_class_histogram(path, shape, soft):
    N, D, C = shape
    check_histogram("triton", features(N, D), (soft_labels if soft else labels)(N, C), C)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(path, dtype):
    check_terms("triton", features(37, 19, dtype), labels(37, 10), 10)


def test_the_real_tiles(monkeypatch):
    """As on a GPU."""
    monkeypatch.undo()
    for C in (3, 300, 1100):  # whole columns of the table; several tiles of slots
        check_terms("triton", features(9, 5), torch.cat([labels(6, 3), labels(3, C)]), C)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("C", [6, 30])
def test_options(path, case, C):
    N, D = 13, 7
    check_terms("triton", features(N, D), labels(N, C, "some ignored"), C, **case.make(N, C))


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_soft_labels(case, dtype):
    N, D, C = 17, 18, 6
    check_terms("triton", features(N, D, dtype), soft_labels(N, C), C, **case.make(N, C))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("C", [4, 20])
def test_labels(path, kind, C):
    check_terms("triton", features(13, 5), labels(13, C, kind), C)


UNEVEN = {  # how 40 rows may be spread over slots, which are cut into pieces of 8 rows
    "one class": lambda y: torch.full_like(y, 3),
    "one large class": lambda y: torch.where(torch.arange(len(y)) < 27, 2, y),
    "two large classes": lambda y: torch.where(torch.arange(len(y)) < 20, 1, 5),
    "most ignored": lambda y: torch.where(torch.arange(len(y)) < 34, -100, y),
    "in order": lambda y: y.sort().values,
}


@pytest.mark.parametrize("uneven", UNEVEN)
@pytest.mark.parametrize("C", [7, 50])
def test_uneven_classes(path, uneven, C):
    y, x = UNEVEN[uneven](labels(40, 7)), features(40, 19)
    check_terms("triton", x, y, C, sample_weight=torch.rand(40))
    check_histogram("triton", x, y, C)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(path, layout):
    check_terms("triton", LAYOUTS[layout](features(13, 7)), labels(13, 5), 5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_fused_loss(reduction):
    """Two layers, of which the second has another dtype."""
    logits, y = torch.randn(15, 6).double(), labels(15, 6)
    x = [features(15, 7), features(15, 5, torch.float32)]
    upstream = torch.rand(15).double() if reduction == "none" else torch.rand(()).double()
    found = []
    for name in ("reference", "triton"):
        leaves = [t.clone().requires_grad_() for t in (logits, *x)]
        loss = fused_disc_loss(
            leaves[0], y, leaves[1:], reduction=reduction, gini_weight=0.7, kl_weight=0.2,
            backend=name,
        )  # fmt: skip
        found.append([loss, *torch.autograd.grad(loss, leaves, upstream)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_the_same_bits_on_every_run(path):
    x, y = features(20, 17, torch.float32).requires_grad_(), labels(20, 10)

    def run():
        gini, kl = disc_terms(x, y, 10, backend="triton")
        return [gini, kl, *torch.autograd.grad(gini + kl, x)]

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("C", [5, 40])
def test_bad_labels_are_counted_and_reach_the_user(path, C):
    """No label out of range is followed; the error says how many there were."""
    y = labels(20, C)
    y[3], y[7], y[8], y[11] = C, -1, 2**40, -100
    x = features(20, 3)
    with pytest.raises(IndexError, match="3 labels of a batch"):
        disc_terms(x, y, C, backend="triton")
    disc_terms(x, labels(20, C), C, backend="triton")


@pytest.mark.parametrize("C", [5, 40])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_shapes_of_what_is_kept(path, C, soft):
    """torch.compile plans with empty_rows and empty_kept."""
    N, D, acc = 20, 7, torch.float32
    target, x = (soft_labels if soft else labels)(N, C), torch.randn(N, D)
    triton, backend = _ops.named("triton"), backends.get("triton")
    rows = triton.rows(target, None, C, -100, acc)
    kept = triton.terms(x, rows, C, None, 0, 0, 0.5, 0.5)[3]
    expected = backend.empty_rows(target, C, acc), backend.empty_kept(x, rows, C)
    for tensors, empty in zip((rows, kept), expected, strict=True):
        assert [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in empty]


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
        if not any(word in name for word in NO_LAUNCH) and not name.startswith("discfused"):
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


TERMS = {6: ["whole_terms"], 40: ["slot_terms", "finish"]}  # by C: one tile of slots, or several


@pytest.mark.parametrize("C", TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_launches(C, dtype, monkeypatch):
    """Everything between labels and features and the terms, and back."""
    N, D, acc = 40, 19, accumulation_dtype(dtype)
    x, y, triton = features(N, D, dtype).requires_grad_(), labels(N, C), _ops.named("triton")
    bad_labels(x.device)  # made once a process
    with Launches(monkeypatch) as launched:
        rows = triton.rows(y, None, C, -100, acc)
        penalty, *_ = triton.terms(x, rows, C, None, 0, 0, 0.3, 0.7)
        assert launched.names == ["rows", "table", "column_terms", *TERMS[C]]
    upstream = torch.ones_like(penalty)
    with launched:
        launched.names.clear()
        torch.autograd.grad(penalty, x, upstream)
        assert launched.names == ["gradient"]


def test_warmup_runs_every_stage():
    discfused.warmup(
        shapes=[(9, 5), (4, 3)], dtypes=[torch.float32, torch.bfloat16], num_classes=6,
        device="cpu",
    )  # fmt: skip
