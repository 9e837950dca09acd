"""The Triton kernels on CPU tensors, against the reference in float64. test_triton.py runs this.

The interpreter proves mathematics, masks, strides, and that no program depends on another
(interpreted.py); not compilation (test_triton_compile.py) or speed (test_gpu.py).
"""

import pytest
import torch

import discfused
from cases import LABELS, LAYOUTS, OPTIONS, features, labels, soft_labels
from discfused import backends, disc_terms, fused_disc_loss
from interpreted import (  # noqa: F401 (fixtures)
    KERNELS,
    REAL_TILES,
    backend,
    fused_backend,
    memory,
    tiles,
)
from test_class_sums import (  # noqa: F401
    test_sums_and_sizes,
    test_the_mean_over_parts_is_the_loss_of_the_whole,
)
from test_edges import (  # noqa: F401 (collected here, with the fixture `backend` below)
    test_features_at_the_ends_of_half_precision_are_finite,
    test_the_scalars_are_tensors_of_their_own,
    test_units_of_features_and_weights_change_nothing,
    test_zeros_in_a_divergence,
)
from test_facts import (  # noqa: F401 (the others follow from being equal to the reference)
    test_labels_weights_and_prior_are_constants,
    test_one_hot_equals_hard,
    test_scale_of_a_feature_changes_nothing,
    test_values_and_gradients_are_those_of_the_formulas,
)
from test_loss import (  # noqa: F401
    test_double_backward_is_an_error_of_the_fused_backends,
    test_no_input_is_written_to,
)
from test_parity import (  # noqa: F401
    check_histogram,
    check_terms,
    test_strided_labels,
    test_upstream_gradient_survives_half_precision,
)

# The interpreter takes a millisecond for each dozen statements of each program: small shapes, few
# cases. N, D, C: ones, odd sizes, more classes than samples; several blocks of everything
SHAPES = [(1, 1, 1), (2, 1, 2), (5, 3, 1), (7, 5, 3), (37, 19, 10), (16, 33, 40), (3, 17, 200)]


def test_it_runs_here_by_name_only():
    assert backends.get("triton").unavailable() is None
    assert backends.resolve("cpu", "triton") == "triton"
    assert backends.preferred("cpu")[0] != "triton"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    N, D, C = shape
    check_terms("triton", features(N, D), labels(N, C), C)


def test_more_classes_than_samples():
    check_terms("triton", features(9, 5), labels(9, 21841), 21841)
    check_terms(
        "triton", features(39, 5), labels(39, 21841, "some ignored"), 21841, prior="uniform"
    )


@pytest.mark.parametrize("shape", [(7, 5, 3), (3, 5, 50), (20, 17, 6)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_class_histogram(shape, soft):
    N, D, C = shape
    y = soft_labels(N, C) if soft else labels(N, C, "some ignored")
    check_histogram("triton", features(N, D), y, C, sample_weight=torch.arange(N) % 3)


@pytest.mark.parametrize("C", [8, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype, C):
    """The interpreter cuts off where a GPU rounds to bfloat16."""
    rounding = 1.0 if dtype == torch.bfloat16 else 0.5
    check_terms("triton", features(13, 7, dtype), labels(13, C), C, rounding)


@pytest.mark.parametrize("C", [3, 100, 300, 1100])
def test_the_real_tiles(C, monkeypatch):
    """As on a GPU. All slots in one tile, of three widths, or in two; soft labels have C slots."""
    monkeypatch.setattr(KERNELS, "BLOCKS", REAL_TILES)
    check_terms("triton", features(5, 37, torch.float32), soft_labels(5, C).float(), C)
    for N in (5, 9, 17) if C == 3 else ():  # of each width of tiles of rows
        for dtype in REAL_TILES:
            check_terms("triton", features(N, 37, dtype), labels(N, C), C)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("C", [6, 30])
def test_options(case, C):
    N, D = 13, 7
    check_terms("triton", features(N, D), labels(N, C, "some ignored"), C, **case.make(N, C))


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_soft_labels(case, dtype):
    N, D, C = 17, 18, 6
    check_terms("triton", features(N, D, dtype), soft_labels(N, C), C, **case.make(N, C))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("C", [4, 20])
def test_labels(kind, C):
    for options in ({}, {"impurity": "collision", "prior": "uniform"}):
        check_terms("triton", features(13, 5), labels(13, C, kind), C, **options)


NOTHING = {
    "no rows": (torch.zeros(0, 5), torch.zeros(0).long()),
    "no rows, soft": (torch.zeros(0, 5), None),
    "all features dead": (torch.zeros(9, 5), torch.arange(9) % 3),
    "all features dead, soft": (torch.zeros(9, 5), None),
    "dead, one class": (torch.zeros(9, 5), torch.ones(9).long()),
    "all ignored": (torch.rand(9, 5), torch.full((9,), -100)),
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("C", [3, 20])
def test_nothing_to_say(case, C):
    x, y = NOTHING[case]
    y = soft_labels(len(x), C) if y is None else y
    for options in ({}, {"impurity": "collision", "prior": "uniform"}):
        check_terms("triton", x.double(), y, C, **options)
    check_histogram("triton", x.double(), y, C)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("C", [4, 30, None], ids=str)
def test_a_bad_number(C, value):
    """In a row that counts it makes the terms NaN; in one that does not, no difference."""
    x, y = features(7, 5).requires_grad_(), soft_labels(7, 4) if C is None else labels(7, C)
    C = C or 4
    weight = torch.arange(7) % 5

    def run(row):
        bad = x.clone()
        if row is not None:
            bad[row, 3] = value
        terms = disc_terms(
            bad, y, C, sample_weight=weight, activation="relu" if value < 0 else "abs",
            backend="triton",
        )  # fmt: skip
        terms = torch.stack(terms)
        return [terms, *torch.autograd.grad(terms.sum(), x)]

    assert run(1)[0].isnan().all()
    assert all(torch.equal(a, b) for a, b in zip(run(None), run(5), strict=True))


UNEVEN = {  # how 28 rows may be spread over slots, which are cut into pieces of 8 rows
    "one class": lambda y: torch.full_like(y, 3),
    "one large class": lambda y: torch.where(torch.arange(len(y)) < 19, 2, y),
    "two large classes": lambda y: torch.where(torch.arange(len(y)) < 14, 1, 5),
    "most ignored": lambda y: torch.where(torch.arange(len(y)) < 24, -100, y),
    "in order": lambda y: y.sort().values,
}


@pytest.mark.parametrize("uneven", UNEVEN)
@pytest.mark.parametrize(("C", "D"), [(7, 19), (50, 5)])
def test_uneven_classes(uneven, C, D):
    x, y = features(28, D), UNEVEN[uneven](labels(28, 7))
    check_terms("triton", x, y, C, sample_weight=torch.rand(28))
    if C == 7:
        check_histogram("triton", x, y, C)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
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


def test_warmup_runs_every_stage():
    discfused.warmup(
        shapes=[(9, 5), (4, 3)], dtypes=[torch.float32, torch.bfloat16], num_classes=6,
        device="cpu",
    )  # fmt: skip
