"""Triton kernels of the gradient with respect to the features. coef: triton_terms."""

import triton
import triton.language as tl

from discfused.backends.triton_math import (
    _columns,
    _divide,
    _number,
    _product,
    _pull_back,
    _read,
)
from discfused.backends.triton_table import _piece, _read_places

# Upstream gradients are views at any offset where autograd makes them.
_UPSTREAM = [
    "grad_penalty", "grad_gini", "grad_kl", "given",
    "gini_weight", "gini_rest", "kl_weight", "kl_rest",
]  # fmt: skip


@triton.jit
def _upstream(
    grad_penalty, grad_gini, grad_kl, given, gini_weight, gini_rest, kl_weight, kl_rest,
    ACC: tl.constexpr,
):  # fmt: skip
    """g1 and g2. The bits of `given` say which gradients there are."""
    of_penalty = tl.load(grad_penalty, mask=given % 2 != 0, other=0.0).to(ACC)
    of_gini = tl.load(grad_gini, mask=given // 2 % 2 != 0, other=0.0).to(ACC)
    of_kl = tl.load(grad_kl, mask=given // 4 != 0, other=0.0).to(ACC)
    g1 = of_penalty * _number(gini_weight, gini_rest, ACC) + of_gini
    return g1, of_penalty * _number(kl_weight, kl_rest, ACC) + of_kl


@triton.jit
def _coefficients(coef, columns, inside, D, g1, g2, ACC: tl.constexpr):
    """1 / T and two more for every column: G = 1 / T * (constant + slope * H + g2 * A / L)"""
    inverse = tl.load(coef + columns, mask=inside, other=0.0).to(ACC)
    squares = tl.load(coef + D + columns, mask=inside, other=0.0).to(ACC)
    scale = tl.load(coef + 2 * D + columns, mask=inside, other=0.0).to(ACC)
    projection = tl.load(coef + 3 * D + columns, mask=inside, other=0.0).to(ACC)
    return inverse, g1 * scale * squares - g2 * projection, -g1 * scale * inverse


@triton.jit(do_not_specialize=["N", "S", "R", *_UPSTREAM])
def gradient_kernel(
    x, row_stride, index, weight, table, coef,
    grad_penalty, grad_gini, grad_kl, given, gini_weight, gini_rest, kl_weight, kl_rest,
    dx, N, S, D, R,
    TERMS: tl.constexpr, PRESENT: tl.constexpr, WEIGHTED: tl.constexpr, ACT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """dx of COLS columns of one piece of the rows (_piece), which have one row of G: from H (TERMS)
    or, of class_histogram, given as `table`. Rows that do not count get 0 and are not read."""
    ACC: tl.constexpr = weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    columns, inside = _columns(tl.program_id(0) % blocks, D, COLS)
    slot, place, end, _ = _piece(tl.program_id(0) // blocks, index, N, S, R)
    row_weight = weight + S + 1
    rows, w, there = _read_places(place, end, index, row_weight, WEIGHTED, ROWS, ACC)
    counts = slot < S
    line = slot.to(tl.int64)
    if PRESENT and not TERMS:
        line = tl.load(index + 2 * N + 2 * (S + 1) + slot, mask=counts, other=-1)
    G = tl.load(table + line * D + columns, mask=inside & counts & (line >= 0), other=0.0).to(ACC)
    if TERMS:
        g1, g2 = _upstream(
            grad_penalty, grad_gini, grad_kl, given, gini_weight, gini_rest, kl_weight, kl_rest, ACC
        )
        inverse, constant, slope = _coefficients(coef, columns, inside, D, g1, g2, ACC)
        A = tl.load(coef + 4 * D + slot, mask=counts, other=0.0).to(ACC)
        # 1 / T last: it may be large. A dead feature gets 0 even if A is NaN.
        G = tl.where(inverse == 0, 0.0, inverse * (constant + slope * G + g2 * A))
        G = tl.where(counts, G, 0.0)
    G = _divide(G, tl.load(weight + slot, mask=counts, other=1.0).to(ACC))[None, :]
    while place < end:
        mask = there[:, None] & inside[None, :]
        value = _read(x, rows, columns, row_stride, 1, mask & counts, ACC)
        to = dx + rows.to(tl.int64)[:, None] * D + columns[None, :]
        g = w[:, None] * G
        place += ROWS
        rows, w, there = _read_places(place, end, index, row_weight, WEIGHTED, ROWS, ACC)
        tl.store(to, _pull_back(value, g, ACT).to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N", "S", *_UPSTREAM])
def soft_gradient_kernel(
    x, row_stride, m, weight, table, coef,
    grad_penalty, grad_gini, grad_kl, given, gini_weight, gini_rest, kl_weight, kl_rest,
    dx, N, S, D,
    TERMS: tl.constexpr, ACT: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """dx = phi'(x) * ((m / n) @ G) of ROWS rows and COLS columns; G as in gradient_kernel."""
    ACC: tl.constexpr = weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    columns, inside = _columns(tl.program_id(0) % blocks, D, COLS)
    rows = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    if TERMS:
        g1, g2 = _upstream(
            grad_penalty, grad_gini, grad_kl, given, gini_weight, gini_rest, kl_weight, kl_rest, ACC
        )
        inverse, constant, slope = _coefficients(coef, columns, inside, D, g1, g2, ACC)
    sums = tl.zeros([ROWS, COLS], dtype=ACC)
    first = 0
    while first < S:
        slots = first + tl.arange(0, INNER)
        n = tl.load(weight + slots, mask=slots < S, other=0.0).to(ACC)
        mask = (rows < N)[:, None] & (slots < S)[None, :]
        left = _read(m, rows, slots, S, 1, mask, ACC)
        mask = (slots < S)[:, None] & inside[None, :]
        G = _read(table, slots, columns, D, 1, mask, ACC)
        if TERMS:
            A = tl.load(coef + 4 * D + slots, mask=slots < S, other=0.0).to(ACC)
            G = constant[None, :] + slope[None, :] * G + (g2 * A)[:, None]
            G = tl.where((inverse == 0)[None, :], 0.0, inverse[None, :] * G)
        sums = _product(_divide(left, n[None, :]), G, sums)
        first += INNER
    counts = tl.load(weight + S + 1 + rows, mask=rows < N, other=0.0).to(ACC) != 0
    mask = counts[:, None] & inside[None, :]
    value = _read(x, rows, columns, row_stride, 1, mask, ACC)
    sums = tl.where(mask, _pull_back(value, sums, ACT), 0.0)  # also where G is NaN
    to = dx + rows.to(tl.int64)[:, None] * D + columns[None, :]
    tl.store(to, sums.to(dx.dtype.element_ty), mask=(rows < N)[:, None] & inside[None, :])
