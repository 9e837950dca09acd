"""Triton kernels from the table to the terms, and to what backward needs of them.

coef, flat: of every column 1 / T (0 if dead), s2, 2 f / D, and sum_k A_k P_kj / L; then A_s / L
of every slot. column_terms_kernel reads columns of H. Where slots are few, it leaves the part
of q that its columns have beside its other sums, and whole_terms_kernel does the rest. More
slots are divided among programs: slot_terms_kernel reads rows of H, for q and then for the
projection, and finish_kernel adds up.
"""

import triton
import triton.language as tl

from discfused.backends.triton_math import (
    _columns,
    _divide,
    _log,
    _number,
    _read,
    _sum_lines,
)

FLOOR: tl.constexpr = tl.constexpr(1e-10)  # PROBABILITY_FLOOR


@triton.jit
def _inverse(T, COLS: tl.constexpr):
    """1 / T, 0 for a dead feature"""
    inverse = _divide(tl.full([COLS], 1.0, T.dtype), T)
    inverse += 0.0 * T  # infinity * 0 is NaN: not a dead feature
    return tl.where((T == 0) | (inverse == float("inf")), 0.0, inverse)


@triton.jit
def _feature_terms(
    inverse, squares, present, coef, line, columns, inside, D,
    IMPURITY: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Stores the first three rows of coef; and, over these columns, the number of live ones and the
    sum of their impurities."""
    ACC: tl.constexpr = inverse.dtype
    dead = inverse == 0
    squares = tl.where(dead, 0.0, squares)
    scale = _divide(tl.full([COLS], 2.0, ACC), tl.full([COLS], D, ACC))
    if IMPURITY == 0:
        impurity = 1.0 - squares
    else:
        most = _log(tl.where(present < 2, 2.0, present).to(ACC))
        square = tl.where(dead, 1.0, squares)
        impurity = tl.where(dead, 1.0, _divide(-_log(square), most))
        impurity = tl.where(present < 2, 0.0 * squares, impurity)  # NaN passes
        scale = tl.where(present < 2, 0.0, _divide(scale, square * most))
    tl.store(coef + columns, inverse, mask=inside)
    tl.store(coef + D + columns, squares, mask=inside)
    tl.store(coef + 2 * D + columns, scale, mask=inside)
    tl.store(line, tl.sum(tl.where(dead, 0.0, 1.0).to(ACC), axis=0))
    tl.store(line + 1, tl.sum(tl.where(inside, impurity, 0.0), axis=0))


@triton.jit
def _read_column_tile(table, weight, first, columns, inside, S, D, SLOTS: tl.constexpr):
    """H of SLOTS slots, and which of them are present"""
    ACC: tl.constexpr = table.dtype.element_ty
    slots = first + tl.arange(0, SLOTS)
    there = slots < S
    tile = _read(table, slots, columns, D, 1, there[:, None] & inside[None, :], ACC)
    return tile, (tl.load(weight + slots, mask=there, other=0.0).to(ACC) != 0).to(ACC)


@triton.jit(do_not_specialize=["S"])
def column_terms_kernel(
    table, weight, coef, column_sums, S, D,
    WHOLE: tl.constexpr, IMPURITY: tl.constexpr,
    SLOTS: tl.constexpr, COLS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """_feature_terms of COLS columns. column_sums [programs, 2] gets their two sums; where
    slots are few (WHOLE), [programs, 2 + S], that of P for every slot, too. A table of more than
    SLOTS is read a second time, from L2 as far as it fits: H^2 could overflow, and vanish."""
    columns, inside = _columns(tl.program_id(0), D, COLS)
    first = tl.full([], SLOTS, tl.int32)  # a literal cannot change
    tile, present = _read_column_tile(table, weight, 0, columns, inside, S, D, SLOTS)
    sums = tile
    if not WHOLE:
        while first < S:
            further, more = _read_column_tile(table, weight, first, columns, inside, S, D, SLOTS)
            sums += further
            present += more
            first += SLOTS
    T = tl.sum(sums, axis=0)
    share = _divide(tile, T[None, :])
    squares = share * share
    if not WHOLE:
        first = tl.full([], SLOTS, tl.int32)
        while first < S:
            further, _ = _read_column_tile(table, weight, first, columns, inside, S, D, SLOTS)
            share = _divide(further, T[None, :])
            squares += share * share
            first += SLOTS
    inverse = _inverse(T, COLS)
    line = column_sums + tl.program_id(0).to(tl.int64) * (S + 2 if WHOLE else 2)
    _feature_terms(
        inverse, tl.sum(squares, axis=0), tl.sum(present, axis=0), coef, line, columns, inside, D,
        IMPURITY, COLS,
    )  # fmt: skip
    if WHOLE:
        slots = tl.arange(0, SLOTS)
        tl.store(line + 2 + slots, tl.sum(tile * inverse[None, :], axis=1), mask=slots < S)


@triton.jit
def _class_terms(
    P_sum, L, slots, index, weight, prior, N, S, PRIOR: tl.constexpr, PRESENT: tl.constexpr
):
    """A / L and the part of kl of every slot, from the sum of its P over the L live columns."""
    ACC: tl.constexpr = P_sum.dtype
    there = slots < S
    if PRIOR:
        classes = slots.to(tl.int64)
        if PRESENT:
            classes = tl.load(index + 2 * N + 2 * (S + 1) + slots, mask=there, other=-1)
        pi = tl.load(prior + classes, mask=there & (classes >= 0), other=0.0).to(ACC)
    else:
        n = tl.load(weight + slots, mask=there, other=0.0).to(ACC)
        pi = _divide(n, tl.load(weight + S).to(ACC))
    q = _divide(P_sum, L)
    floor = tl.full([], FLOOR, ACC)  # a comparison would round it to float32
    is_clamped = q < floor
    q = tl.where(is_clamped, floor, q)
    nothing = pi == 0
    kl = tl.where(nothing, 0.0, pi * _log(tl.where(nothing, 1.0, _divide(pi, q))))
    return tl.where(is_clamped | nothing, 0.0, -_divide(_divide(pi, q), L)), kl


@triton.jit
def _store_scalars(
    L, impurity, divergence, absent, weight, penalty, gini, kl, S, D,
    gini_weight, gini_rest, kl_weight, kl_rest, ABSENT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    gini_value = _divide(impurity, tl.full([], D, ACC))
    gini_value = tl.where(gini_value < 0, 0.0, gini_value)
    kl_value = divergence
    if ABSENT:
        kl_value += tl.load(absent).to(ACC)
    kl_value = tl.where((L == 0) | (kl_value < 0), 0.0, kl_value)
    nothing = tl.load(weight + S).to(ACC) == 0  # no row counts
    gini_value = tl.where(nothing, 0.0, gini_value)
    kl_value = tl.where(nothing, 0.0, kl_value)
    tl.store(gini, gini_value)
    tl.store(kl, kl_value)
    gini_value *= _number(gini_weight, gini_rest, ACC)
    kl_value *= _number(kl_weight, kl_rest, ACC)
    tl.store(penalty, gini_value + kl_value)


_WEIGHTS = ["gini_weight", "gini_rest", "kl_weight", "kl_rest"]


@triton.jit(do_not_specialize=["N", "S", "blocks", *_WEIGHTS])
def whole_terms_kernel(
    table, index, weight, prior, absent, coef, column_sums, penalty, gini, kl, N, S, D, blocks,
    gini_weight, gini_rest, kl_weight, kl_rest,
    PRIOR: tl.constexpr, PRESENT: tl.constexpr,
    SLOTS: tl.constexpr, COLS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """A, the projection of COLS columns and the scalars from `column_sums`. Every program
    makes all A for itself, instead of a launch for them."""
    ACC: tl.constexpr = table.dtype.element_ty
    program = tl.program_id(0)
    columns, inside = _columns(program, D, COLS)
    slots = tl.arange(0, SLOTS)
    there = slots < S
    tile = _read(table, slots, columns, D, 1, there[:, None] & inside[None, :], ACC)
    inverse = tl.load(coef + columns, mask=inside, other=0.0).to(ACC)
    P_sum = tl.zeros([LINES, SLOTS], dtype=ACC)
    live = tl.zeros([LINES], dtype=ACC)
    impurity = tl.zeros([LINES], dtype=ACC)
    width = S + 2
    first = 0
    while first < blocks:
        lines = first + tl.arange(0, LINES)
        known = lines < blocks
        mask = known[:, None] & there[None, :]
        P_sum += _read(column_sums + 2, lines, slots, width, 1, mask, ACC)
        line = column_sums + lines.to(tl.int64) * width
        live += tl.load(line, mask=known, other=0.0).to(ACC)
        impurity += tl.load(line + 1, mask=known, other=0.0).to(ACC)
        first += LINES
    L = tl.sum(live, axis=0)
    A, divergence = _class_terms(
        tl.sum(P_sum, axis=0), L, slots, index, weight, prior, N, S, PRIOR, PRESENT
    )
    projection = tl.sum(A[:, None] * (tile * inverse[None, :]), axis=0)
    # A may be NaN, which a dead feature has nothing to do with.
    projection = tl.where(inverse == 0, 0.0, projection)
    tl.store(coef + 3 * D + columns, projection, mask=inside)
    if program == 0:
        tl.store(coef + 4 * D + slots, A, mask=there)
        _store_scalars(
            L, tl.sum(impurity, axis=0), tl.sum(divergence, axis=0), absent, weight,
            penalty, gini, kl, S, D, gini_weight, gini_rest, kl_weight, kl_rest,
            PRIOR and PRESENT, ACC,
        )  # fmt: skip


@triton.jit
def _read_slots(table, coef, slots, block, S, D, COLS: tl.constexpr):
    """H of the slots in a block of columns, their 1 / T, and which they are"""
    ACC: tl.constexpr = table.dtype.element_ty
    columns, inside = _columns(block, D, COLS)
    inverse = tl.load(coef + columns, mask=inside, other=0.0).to(ACC)
    H = _read(table, slots, columns, D, 1, (slots < S)[:, None] & inside[None, :], ACC)
    return H, inverse, columns, inside


@triton.jit(do_not_specialize=["N", "S"])
def slot_terms_kernel(
    table, index, weight, prior, coef, slot_sums, N, S, D,
    PRIOR: tl.constexpr, PRESENT: tl.constexpr, SLOTS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """A of SLOTS slots, from their rows of H; then, while these are in cache, their part of the
    projection: slot_sums [blocks, D]. Their parts of kl follow, [blocks]."""
    ACC: tl.constexpr = table.dtype.element_ty
    block = tl.program_id(0)
    slots = block * SLOTS + tl.arange(0, SLOTS)
    P_sum = tl.zeros([SLOTS, COLS], dtype=ACC)
    live = tl.zeros([COLS], dtype=ACC)
    column_block = 0
    # The next columns are on their way while these are added (see _sum_lines).
    H, inverse, columns, inside = _read_slots(table, coef, slots, 0, S, D, COLS)
    while column_block * COLS < D:
        P_sum += H * inverse[None, :]
        live += tl.where(inverse == 0, 0.0, 1.0)
        column_block += 1
        H, inverse, columns, inside = _read_slots(table, coef, slots, column_block, S, D, COLS)
    H, inverse, columns, inside = _read_slots(table, coef, slots, 0, S, D, COLS)
    A, divergence = _class_terms(
        tl.sum(P_sum, axis=1), tl.sum(live, axis=0), slots, index, weight, prior, N, S,
        PRIOR, PRESENT,
    )  # fmt: skip
    tl.store(coef + 4 * D + slots, A, mask=slots < S)
    part = slot_sums + tl.num_programs(0).to(tl.int64) * D + block
    tl.store(part, tl.sum(divergence, axis=0))
    column_block = 0
    while column_block * COLS < D:
        projection = tl.sum(A[:, None] * (H * inverse[None, :]), axis=0)
        projection = tl.where(inverse == 0, 0.0, projection)
        tl.store(slot_sums + block.to(tl.int64) * D + columns, projection, mask=inside)
        column_block += 1
        H, inverse, columns, inside = _read_slots(table, coef, slots, column_block, S, D, COLS)


@triton.jit(do_not_specialize=["S", "blocks", "slot_blocks", *_WEIGHTS])
def finish_kernel(
    absent, weight, coef, column_sums, slot_sums, penalty, gini, kl, S, D, blocks,
    slot_blocks, gini_weight, gini_rest, kl_weight, kl_rest,
    ABSENT: tl.constexpr, LINES: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The projection of COLS columns from its parts, and the scalars."""
    ACC: tl.constexpr = coef.dtype.element_ty
    program = tl.program_id(0)
    columns, inside = _columns(program, D, COLS)
    value = _sum_lines(slot_sums, 0, slot_blocks, columns, inside, D, LINES, ACC)
    tl.store(coef + 3 * D + columns, value, mask=inside)
    if program == 0:
        live = tl.zeros([LINES], dtype=ACC)
        impurity = tl.zeros([LINES], dtype=ACC)
        divergence = tl.zeros([LINES], dtype=ACC)
        first = 0
        while (first < blocks) | (first < slot_blocks):
            line = first + tl.arange(0, LINES)
            known = line < blocks
            live += tl.load(column_sums + 2 * line, mask=known, other=0.0).to(ACC)
            impurity += tl.load(column_sums + 2 * line + 1, mask=known, other=0.0).to(ACC)
            part = slot_sums + slot_blocks.to(tl.int64) * D + line
            divergence += tl.load(part, mask=line < slot_blocks, other=0.0).to(ACC)
            first += LINES
        _store_scalars(
            tl.sum(live, axis=0), tl.sum(impurity, axis=0), tl.sum(divergence, axis=0), absent,
            weight, penalty, gini, kl, S, D, gini_weight, gini_rest, kl_weight, kl_rest,
            ABSENT, ACC,
        )  # fmt: skip
