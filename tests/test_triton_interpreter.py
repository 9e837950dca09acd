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

from cases import LABELS, LAYOUTS, OPTIONS, features, labels, soft_labels
from discfused import backends, class_histogram, disc_terms, fused_disc_loss
from discfused.backends import triton_backend, triton_runtime
from test_edges import (  # noqa: F401 (collected here, with the fixture `backend` below)
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
    check_terms,
    test_class_histogram_of_a_transposed_upstream_gradient,
    test_strided_labels,
    test_upstream_gradient_survives_half_precision,
)

# The interpreter takes a millisecond for each statement of each program: small shapes, few cases.
# N, D, C: ones, odd sizes, more classes than samples; in all tiles below more than one block
SHAPES = [(1, 1, 1), (2, 1, 2), (5, 3, 1), (7, 5, 3), (37, 19, 10), (16, 33, 40), (3, 17, 1000)]

# So small that every loop runs more than once, and the scan, which the interpreter does one element
# at a time, is short.
TILES = {
    "class_slots": {"ROWS": 16, "SLOTS": 16},
    "present_slots": {"ROWS": 16, "SLOTS": 16},
    "moments": {"MOMENT_ROWS": 4, "COLS": 16},
    "share": {"ROWS": 4},
    "slot_rows": {"PARTS": 2, "ROWS": 1, "COLS": 16},
    "carry": {"LINES": 2, "COLS": 16},
    "feature_terms": {"LINES": 2, "SLOTS": 16, "COLS": 16},
    "class_terms": {"PARTS": 1, "SLOTS": 16, "COLS": 32},
    "gradient_sum": {"ROWS": 4, "COLS": 16},
    "gradient": {"ROWS": 8, "COLS": 16, "PARTS": 4},
    "matmul": {"ROWS": 16, "INNER": 16, "COLS": 16},
    "whole_columns": ({"ROWS": 8, "COLS": 4}, {"ROWS": 64, "COLS": 8}),
    "whole_gradient": ({"ROWS": 8, "COLS": 4}, {"ROWS": 64, "COLS": 8}),
}


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    tables = dict.fromkeys((torch.float32, torch.float64), TILES)
    monkeypatch.setattr(triton_runtime.kernels(), "BLOCKS", tables)
    programs = dict.fromkeys(triton_runtime.kernels().PROGRAMS, 8)
    monkeypatch.setattr(triton_runtime.kernels(), "PROGRAMS", programs)


@pytest.fixture(params=["in registers", "in two passes", "sorted"])
def path(request, monkeypatch, tiles):
    """All rows fit one program; or a sum needs a second stage; or rows are too many to count."""
    if request.param != "in registers":
        table = {**TILES, "whole_columns": (), "whole_gradient": ()}
        tables = dict.fromkeys((torch.float32, torch.float64), table)
        monkeypatch.setattr(triton_runtime.kernels(), "BLOCKS", tables)
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


@pytest.mark.parametrize("shape", [(7, 5, 3), (3, 5, 50), (20, 17, 6)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_class_histogram(path, shape, soft):
    """A slot for every class, also where C > N; and any strides of the upstream gradient."""
    N, D, C = shape
    target = soft_labels(N, C) if soft else labels(N, C, "some ignored")
    x, upstream = features(N, D), torch.randn(D, C, dtype=torch.float64).t()
    found = []
    for name in ("reference", "triton"):
        leaf = x.clone().requires_grad_()
        H = class_histogram(leaf, target, C, activation="softplus", backend=name)
        found.append([H, *torch.autograd.grad((H * upstream).sum() + H.sum(), leaf)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(path, shape):
    N, D, C = shape
    check_terms("triton", features(N, D), labels(N, C), C)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(path, dtype):
    check_terms("triton", features(37, 19, dtype), labels(37, 10), 10)


def test_the_real_tiles(monkeypatch):
    """As on a GPU."""
    monkeypatch.undo()
    check_terms("triton", features(9, 5), labels(9, 3), 3)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("C", [6, 30])
def test_options(case, C):
    N, D = 13, 7
    check_terms("triton", features(N, D), labels(N, C, "some ignored"), C, **case.make(N, C))


@pytest.mark.parametrize("name", ["softplus, centred", "square, centred", "sigmoid, raw",
                                  "all weights", "sample weights with zeros"])  # fmt: skip
@pytest.mark.parametrize("C", [6, 30])
def test_options_of_every_path(path, name, C):
    N, D = 13, 7
    case = next(case for case in OPTIONS if case.name == name)
    options = case.make(N, C)
    check_terms("triton", features(N, D), labels(N, C, "some ignored"), C, **options)


@pytest.mark.parametrize("name", ["default", "reverse", "all weights", "softplus, raw"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_soft_labels(name, dtype):
    N, D, C = 17, 18, 6
    case = next(case for case in OPTIONS if case.name == name)
    check_terms("triton", features(N, D, dtype), soft_labels(N, C), C, **case.make(N, C))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("C", [4, 20])
def test_labels(path, kind, C):
    check_terms("triton", features(13, 5), labels(13, C, kind), C)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(path, layout):
    check_terms("triton", LAYOUTS[layout](features(13, 7)), labels(13, 5), 5)


def test_rows_that_do_not_count_may_hold_anything(path):
    x, y = features(20, 9), labels(20, 5, "some ignored")
    expected = disc_terms(x, y, 5, backend="reference")
    x[::6], x[3::6] = torch.nan, torch.inf
    x.requires_grad_()
    got = disc_terms(x, y, 5, backend="triton")
    torch.testing.assert_close(torch.stack(got), torch.stack(expected))
    (got.gini + got.kl).backward()
    assert x.grad.isfinite().all() and (x.grad[::3] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("C", [4, 20])
def test_a_bad_number_that_counts_gives_nan(path, value, C):
    x, y = features(13, 5), torch.arange(13) % C
    x[6, 3] = value
    x.requires_grad_()
    gini, kl = disc_terms(x, y, C, backend="triton")
    assert gini.isnan() and kl.isnan()
    (gini + kl).backward()
    assert x.grad[:, 3].isnan().any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_fused_loss(reduction):
    logits, y, x = torch.randn(15, 6).double(), labels(15, 6), features(15, 7)
    upstream = torch.rand(15).double() if reduction == "none" else torch.rand(()).double()
    found = []
    for name in ("reference", "triton"):
        leaves = [t.clone().requires_grad_() for t in (logits, x)]
        loss = fused_disc_loss(
            leaves[0], y, leaves[1], reduction=reduction, gini_weight=0.7, kl_weight=0.2,
            backend=name,
        )  # fmt: skip
        found.append([loss, *torch.autograd.grad(loss, leaves, upstream)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


def test_the_same_bits_on_every_run(path):
    x, y = features(20, 17, torch.float32).requires_grad_(), labels(20, 10)

    def run():
        gini, kl = disc_terms(x, y, 10, backend="triton")
        return [gini, kl, *torch.autograd.grad(gini + kl, x)]

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_histograms_of_parts_add_up():
    x, y = features(20, 6), labels(20, 4)
    whole = class_histogram(x, y, 4, center=False, backend="triton")
    parts = [class_histogram(x[i : i + 10], y[i : i + 10], 4, center=False, backend="triton")
             for i in (0, 10)]  # fmt: skip
    torch.testing.assert_close(sum(parts), whole)
