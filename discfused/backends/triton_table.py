"""Triton kernels from features to the table H. Conventions: triton_math; `index` and `weight`:
triton_rows; symbols: contract."""

import triton
import triton.language as tl

from discfused.backends.triton_math import (
    _activate,
    _columns,
    _divide,
    _product,
    _read,
    _sum_lines,
)


@triton.jit
def _piece(piece, index, N, S, R):
    """slot, and from which place to which, of one piece of the rows in the order of slots.

    A slot is cut, at multiples of R, only if it has more than R rows. Pieces 0 to S are the first
    ones of every slot (S: of the rows that do not count); each multiple of R may begin another, at
    most one, whose slot is the one that covers it. So there are S + 1 + N / R pieces of at most R
    rows, however uneven the classes are, and each finds its rows in two loads.
    """
    start = index + 2 * N
    window = piece - (S + 1)
    place = window * R
    follows = window >= 0
    slot = tl.load(index + N + place, mask=follows, other=0)
    slot = tl.where(follows, slot, piece)
    begin = tl.load(start + slot).to(tl.int32)
    count = tl.load(start + S + 1 + slot).to(tl.int32)
    end = begin + count
    is_cut = count > R
    stop = tl.where(is_cut, (begin // R + 1) * R, end)
    stop = tl.where(follows, place + R, stop)
    end = tl.where(stop < end, stop, end)
    # A window that no slot needs has no rows.
    end = tl.where(follows & ((count <= R) | (begin >= place)), place, end)
    return slot, tl.where(follows, place, begin), end, is_cut


@triton.jit
def _read_places(
    place, end, index, row_weight, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr
):
    """rows at ROWS places, their weights, and which of the places there are"""
    places = place + tl.arange(0, ROWS)
    there = places < end
    rows = tl.load(index + places, mask=there, other=0)
    w = tl.full([ROWS], 1.0, ACC)
    if WEIGHTED:
        w = tl.load(row_weight + places, mask=there, other=0.0).to(ACC)
    return rows, w, there


@triton.jit(do_not_specialize=["N", "S", "R"])
def table_kernel(
    x, row_stride, index, weight, table, parts, N, S, D, R,
    WEIGHTED: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """COLS columns of one piece of the rows: H of a slot that is not cut; else a part of its sum,
    of the first piece in the table, of the others in parts [N / R, D], for fold_kernel to put
    together."""
    ACC: tl.constexpr = weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    piece = tl.program_id(0) // blocks
    columns, inside = _columns(tl.program_id(0) % blocks, D, COLS)
    slot, place, end, is_cut = _piece(piece, index, N, S, R)
    end = tl.where(slot < S, end, place)  # nothing is read of rows that do not count
    n = tl.load(weight + slot).to(ACC)
    row_weight = weight + S + 1
    sums = tl.zeros([COLS], dtype=ACC)
    # The next rows are on their way while the features of these are.
    rows, w, there = _read_places(place, end, index, row_weight, WEIGHTED, ROWS, ACC)
    while place < end:
        mask = there[:, None] & inside[None, :]
        value = _read(x, rows, columns, row_stride, 1, mask, ACC)
        weights = w
        place += ROWS
        rows, w, there = _read_places(place, end, index, row_weight, WEIGHTED, ROWS, ACC)
        sums += tl.sum(weights[:, None] * _activate(value, ACT), axis=0)
    if piece > S:
        if is_cut:
            tl.store(parts + (piece - (S + 1)).to(tl.int64) * D + columns, sums, mask=inside)
    elif slot < S:
        sums = _divide(sums, tl.where(is_cut, 1.0, n))
        tl.store(table + slot.to(tl.int64) * D + columns, sums, mask=inside)


@triton.jit(do_not_specialize=["N", "S", "R"])
def fold_kernel(
    table, parts, index, weight, N, S, D, R, LINES: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """COLS columns of H of the slot whose second piece begins at a multiple of R, if there is one:
    every slot that table_kernel cut, each by programs of its own."""
    ACC: tl.constexpr = table.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    columns, inside = _columns(tl.program_id(0) % blocks, D, COLS)
    line = (tl.program_id(0) // blocks).to(tl.int64)
    start = index + 2 * N
    slot = tl.load(index + N + line * R)
    begin = tl.load(start + slot)
    count = tl.load(start + S + 1 + slot)
    is_mine = (slot < S) & (count > R) & (begin // R + 1 == line)
    end = tl.where(is_mine, (begin + count - 1) // R + 1, line)
    sums = _sum_lines(parts, line, end, columns, inside, D, LINES, ACC)
    H = table + slot.to(tl.int64) * D + columns
    mask = inside & is_mine
    value = tl.load(H, mask=mask, other=0.0).to(ACC) + sums
    n = tl.load(weight + slot, mask=is_mine, other=1.0).to(ACC)
    tl.store(H, _divide(value, n), mask=mask)


@triton.jit(do_not_specialize=["N", "S"])
def soft_table_kernel(
    x, row_stride, m, weight, table, N, S, D,
    ACT: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """(m^T phi(x)) / n of ROWS classes and COLS columns. weight: as in triton_rows, but with
    whether a row counts in place of its weight."""
    ACC: tl.constexpr = weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    columns, inside = _columns(tl.program_id(0) % blocks, D, COLS)
    slots = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros([ROWS, COLS], dtype=ACC)
    first = 0
    while first < N:
        rows = first + tl.arange(0, INNER)
        counts = tl.load(weight + S + 1 + rows, mask=rows < N, other=0.0).to(ACC) != 0
        mask = (slots < S)[:, None] & counts[None, :]
        left = _read(m, slots, rows.to(tl.int64), 1, S, mask, ACC)
        mask = counts[:, None] & inside[None, :]
        right = _read(x, rows, columns, row_stride, 1, mask, ACC)
        sums = _product(left, _activate(right, ACT), sums)
        first += INNER
    n = tl.load(weight + slots, mask=slots < S, other=0.0).to(ACC)
    mask = (slots < S)[:, None] & inside[None, :]
    line = table + slots.to(tl.int64)[:, None] * D + columns[None, :]
    tl.store(line, _divide(sums, n[:, None]), mask=mask)
