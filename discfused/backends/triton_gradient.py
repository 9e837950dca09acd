"""Triton kernels of the feature gradient, and the matrix product of soft labels."""

import triton
import triton.language as tl

from discfused.backends.triton_math import _columns, _number, _pull_back, _read

_WEIGHTS = ["gini_weight", "gini_rest", "kl_weight", "kl_rest"]


@triton.jit
def _column_coefficients(
    mean, feature_coef, g1, g2, columns, inside, D,
    CENTER: tl.constexpr, PULL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What contract.Pull needs of every column: G = outer * (constant + slope * H + g2 * A)"""
    mu = tl.zeros([columns.shape[0]], dtype=ACC)
    outer, constant, slope = mu, mu, mu
    if CENTER:
        mu = tl.load(mean + columns, mask=inside, other=0.0).to(ACC)
    if PULL:
        outer = tl.load(feature_coef + columns, mask=inside, other=0.0).to(ACC)
        inverse = tl.load(feature_coef + D + columns, mask=inside, other=0.0).to(ACC)
        squares = tl.load(feature_coef + 2 * D + columns, mask=inside, other=0.0).to(ACC)
        projection = tl.load(feature_coef + 3 * D + columns, mask=inside, other=0.0).to(ACC)
        constant = 2.0 * g1 * squares - g2 * projection
        slope = -2.0 * g1 * inverse
    return mu, outer, constant, slope


@triton.jit
def _upstream(
    grad_gini, grad_kl, gini_weight, gini_rest, kl_weight, kl_rest,
    PULL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of gini and kl with their weights"""
    g1 = tl.full([], 0.0, ACC)
    g2 = g1
    if PULL:
        g1 = tl.load(grad_gini).to(ACC) * _number(gini_weight, gini_rest, ACC)
        g2 = tl.load(grad_kl).to(ACC) * _number(kl_weight, kl_rest, ACC)
    return g1, g2


@triton.jit
def _prepared_shift(feature_coef, g1, g2, outer, columns, inside, D, ACC: tl.constexpr):
    """sum_k phi'(x_k - mu) n_k G as contract.Pull has it"""
    of_gini = tl.load(feature_coef + 4 * D + columns, mask=inside, other=0.0).to(ACC)
    of_kl = tl.load(feature_coef + 5 * D + columns, mask=inside, other=0.0).to(ACC)
    return tl.where(outer == 0, 0.0, outer * (2.0 * g1 * of_gini + g2 * of_kl))


@triton.jit
def _activation_gradient(
    x, row_stride, column_stride, slot, row_weight, table, slot_coef, mu, outer, constant, slope,
    g2, rows, end, columns, inside, D,
    ACT: tl.constexpr, PULL: tl.constexpr, SOFT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """phi'(x - mean) * n G: [ROWS, COLS], any value outside the mask; n: [ROWS]; and the mask"""
    n = tl.load(row_weight + rows, mask=rows < end, other=0.0).to(ACC)
    counts = n != 0
    mask = counts[:, None] & inside[None, :]
    z = _read(x, rows, columns, row_stride, column_stride, mask, ACC) - mu[None, :]
    if SOFT:  # `table` is m @ G [N, D]
        g = _read(table, rows, columns, D, 1, mask, ACC)
    else:
        s = tl.load(slot + rows, mask=counts, other=0)
        g = _read(table, s, columns, D, 1, mask, ACC)
        if PULL:
            A = tl.load(slot_coef + s, mask=counts, other=0.0).to(ACC)
            g = constant[None, :] + slope[None, :] * g + (g2 * A)[:, None]
            # 1 / (L T) last: next to 1 / T it overflows. A dead feature gets 0 even if A is NaN.
            g = tl.where((outer == 0)[None, :], 0.0, outer[None, :] * g)
        g = n[:, None] * g
    return _pull_back(z, g, ACT), n, mask


@triton.jit(do_not_specialize=[*_WEIGHTS, "N", "parts"])
def gradient_sum_kernel(
    x, row_stride, column_stride, slot, row_weight, mean, table, feature_coef, slot_coef,
    grad_gini, grad_kl, gini_weight, gini_rest, kl_weight, kl_rest, sums, N, D, parts,
    ACT: tl.constexpr, PULL: tl.constexpr, SOFT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """sums [parts, D]: of phi'(x - mu) n G over one part of the rows"""
    ACC: tl.constexpr = row_weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    program = tl.program_id(0)
    columns, inside = _columns(program % blocks, D, COLS)
    g1, g2 = _upstream(grad_gini, grad_kl, gini_weight, gini_rest, kl_weight, kl_rest, PULL, ACC)
    mu, outer, constant, slope = _column_coefficients(
        mean, feature_coef, g1, g2, columns, inside, D,
        True, PULL, ACC,
    )  # fmt: skip
    part = (program // blocks).to(tl.int64)
    row = N * part // parts
    end = N * (part + 1) // parts
    value = tl.zeros([ROWS, COLS], dtype=ACC)
    while row < end:
        rows = row + tl.arange(0, ROWS)
        ga, _, mask = _activation_gradient(
            x, row_stride, column_stride, slot, row_weight, table, slot_coef, mu, outer, constant,
            slope, g2, rows, end, columns, inside, D, ACT, PULL, SOFT, ACC,
        )  # fmt: skip
        value += tl.where(mask, ga, 0.0)
        row += ROWS
    tl.store(sums + part * D + columns, tl.sum(value, axis=0), mask=inside)


@triton.jit(do_not_specialize=[*_WEIGHTS, "N", "parts", "rows_each"])
def gradient_kernel(
    x, row_stride, column_stride, slot, row_weight, mean, table, feature_coef, slot_coef,
    grad_gini, grad_kl, gini_weight, gini_rest, kl_weight, kl_rest, sums, N, D, parts, total, dx,
    rows_each,
    ACT: tl.constexpr, SHIFT: tl.constexpr, PULL: tl.constexpr, SOFT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """dx = ga - n / sum(n) * sum_k ga_k, ga = phi'(x - mu) n G. the sum over rows, which there
    is only of centred features, comes (SHIFT) from the program's own registers if they hold all
    rows ("whole"), from rows 4 and 5 of feature_coef ("slope"), or from sums [parts <= PARTS, D]
    ("sums"); else "none"."""
    ACC: tl.constexpr = row_weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    program = tl.program_id(0)
    columns, inside = _columns(program % blocks, D, COLS)
    g1, g2 = _upstream(grad_gini, grad_kl, gini_weight, gini_rest, kl_weight, kl_rest, PULL, ACC)
    mu, outer, constant, slope = _column_coefficients(
        mean, feature_coef, g1, g2, columns, inside, D,
        SHIFT != "none", PULL, ACC,
    )  # fmt: skip
    shift = tl.zeros([COLS], dtype=ACC)
    scale = tl.full([], 0.0, ACC)
    if SHIFT != "none":
        # A total of 0 means that no row counts.
        whole = tl.load(total).to(ACC)
        scale = 1.0 / tl.where(whole == 0, 1.0, whole)
        if SHIFT == "slope":
            shift = _prepared_shift(feature_coef, g1, g2, outer, columns, inside, D, ACC)
        elif SHIFT == "sums":
            part = tl.arange(0, PARTS)
            there = (part < parts)[:, None] & inside[None, :]
            shift = tl.sum(_read(sums, part, columns, D, 1, there, ACC), axis=0)
    row = (program // blocks).to(tl.int64) * rows_each
    end = row + rows_each
    while row < end:
        rows = row + tl.arange(0, ROWS)
        ga, n, mask = _activation_gradient(
            x, row_stride, column_stride, slot, row_weight, table, slot_coef, mu, outer, constant,
            slope, g2, rows, N, columns, inside, D, ACT, PULL, SOFT, ACC,
        )  # fmt: skip
        if SHIFT != "none":
            if SHIFT == "whole":
                shift = tl.sum(tl.where(mask, ga, 0.0), axis=0)
            ga -= (n * scale)[:, None] * shift[None, :]
        # Rows that do not count get 0, also where the rest is NaN.
        ga = tl.where(mask, ga, 0.0)
        line = dx + rows.to(tl.int64)[:, None] * D + columns[None, :]
        tl.store(line, ga.to(dx.dtype.element_ty), mask=(rows < N)[:, None] & inside[None, :])
        row += ROWS


@triton.jit(do_not_specialize=["M", "K"])
def matmul_kernel(
    a, a_row_stride, a_column_stride, b, out, M, K, D,
    ROWS: tl.constexpr, INNER: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out [M, D] = a [M, K] @ b [K, D] in true float32: no TF32, whatever PyTorch's flags say"""
    blocks = tl.cdiv(D, COLS)
    program = tl.program_id(0)
    columns, inside = _columns(program % blocks, D, COLS)
    rows = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    value = tl.zeros([ROWS, COLS], dtype=tl.float32)
    first = 0
    while first < K:
        inner = first + tl.arange(0, INNER)
        mask = (rows < M)[:, None] & (inner < K)[None, :]
        left = _read(a, rows, inner.to(tl.int64), a_row_stride, a_column_stride, mask, tl.float32)
        mask = (inner < K)[:, None] & inside[None, :]
        right = _read(b, inner, columns, D, 1, mask, tl.float32)
        value = tl.dot(left, right, value, input_precision="ieee")
        first += INNER
    line = out + rows.to(tl.int64)[:, None] * D + columns[None, :]
    tl.store(line, value, mask=(rows < M)[:, None] & inside[None, :])
