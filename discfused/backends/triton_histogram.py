"""Triton kernels from features to the table. Conventions: triton_math; symbols: contract."""

import triton
import triton.language as tl

from discfused.backends.triton_math import _activate, _columns, _read, _size


@triton.jit
def _add_within_segment(a, a_opens, b, b_opens):
    return tl.where(b_opens != 0, b, a + b), a_opens | b_opens


@triton.jit(do_not_specialize=["N", "S"])
def whole_columns_kernel(
    x, row_stride, column_stride, slot, row_weight, total, order, span, mean, magnitude, table,
    N, S, D, ACT: tl.constexpr, CENTER: tl.constexpr, GIVEN: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """mean, magnitude and table of COLS columns in one look at x: all N <= ROWS rows are in
    registers, in the order of slots, where a scan adds up each slot's rows."""
    ACC: tl.constexpr = row_weight.dtype.element_ty
    columns, inside = _columns(tl.program_id(0), D, COLS)
    place = tl.arange(0, ROWS)
    rows = tl.load(order + place, mask=place < N, other=0)
    row_slot = tl.load(slot + rows, mask=place < N, other=-1)
    neighbour = (place > 0) & (place < N)
    previous = tl.load(order + place - 1, mask=neighbour, other=0)
    opens = row_slot != tl.load(slot + previous, mask=neighbour, other=-2)
    neighbour = place < N - 1
    following = tl.load(order + place + 1, mask=neighbour, other=0)
    closes = row_slot != tl.load(slot + following, mask=neighbour, other=-2)
    counts = row_slot >= 0
    mask = counts[:, None] & inside[None, :]
    n = tl.load(row_weight + rows, mask=counts, other=0.0).to(ACC)[:, None]
    value = _read(x, rows, columns, row_stride, column_stride, mask, ACC)

    tl.store(magnitude + columns, tl.sum(n * _size(value, ACT), axis=0), mask=inside)
    if CENTER:
        if GIVEN:
            mu = tl.load(mean + columns, mask=inside, other=0.0).to(ACC)
        else:
            whole = tl.load(total).to(ACC)
            mu = tl.sum(n * value, axis=0) / tl.where(whole == 0, 1.0, whole)
            tl.store(mean + columns, mu, mask=inside)
        value = value - mu[None, :]
    value = tl.where(mask, n * _activate(value, ACT), 0.0)
    flags = tl.broadcast_to(opens[:, None].to(tl.int32), [ROWS, COLS])
    value, flags = tl.associative_scan((value, flags), 0, _add_within_segment)
    line = table + row_slot.to(tl.int64)[:, None] * D + columns[None, :]
    tl.store(line, value, mask=mask & closes[:, None])

    first = 0
    while first < S:
        slots = first + tl.arange(0, ROWS)
        empty = tl.load(span + S + slots, mask=slots < S, other=1) == 0
        line = table + slots.to(tl.int64)[:, None] * D + columns[None, :]
        zero = tl.zeros([ROWS, COLS], dtype=ACC)
        tl.store(line, zero, mask=empty[:, None] & inside[None, :])
        first += ROWS


@triton.jit(do_not_specialize=["N", "parts"])
def moments_kernel(
    x, row_stride, column_stride, row_weight, sums, N, D, parts,
    ACT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """sums [parts, 2, D]: of n x and of the magnitude n |x| over one part of the rows"""
    ACC: tl.constexpr = row_weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    program = tl.program_id(0)
    columns, inside = _columns(program % blocks, D, COLS)
    part = (program // blocks).to(tl.int64)
    row = N * part // parts
    end = N * (part + 1) // parts
    signed = tl.zeros([ROWS, COLS], dtype=ACC)
    size = tl.zeros([ROWS, COLS], dtype=ACC)
    while row < end:
        rows = row + tl.arange(0, ROWS)
        n = tl.load(row_weight + rows, mask=rows < end, other=0.0).to(ACC)
        mask = (n != 0)[:, None] & inside[None, :]
        value = _read(x, rows, columns, row_stride, column_stride, mask, ACC)
        signed += n[:, None] * value
        size += n[:, None] * _size(value, ACT)
        row += ROWS
    line = sums + part * 2 * D + columns
    tl.store(line, tl.sum(signed, axis=0), mask=inside)
    tl.store(line + D, tl.sum(size, axis=0), mask=inside)


@triton.jit(do_not_specialize=["parts", "means"])
def fold_kernel(sums, out, total, parts, width, means, PARTS: tl.constexpr, COLS: tl.constexpr):
    """out [width] = sum of sums [parts, width]; the first `means` of them divided by the total"""
    ACC: tl.constexpr = out.dtype.element_ty
    columns, inside = _columns(tl.program_id(0), width, COLS)
    value = tl.zeros([PARTS, COLS], dtype=ACC)
    first = 0
    while first < parts:
        part = first + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & inside[None, :]
        value += _read(sums, part, columns, width, 1, mask, ACC)
        first += PARTS
    whole = tl.load(total).to(ACC)
    divisor = tl.where(columns < means, tl.where(whole == 0, 1.0, whole), 1.0)
    tl.store(out + columns, tl.sum(value, axis=0) / divisor, mask=inside)


@triton.jit(do_not_specialize=["S", "parts"])
def slot_rows_kernel(
    x, row_stride, column_stride, row_weight, order, span, mean, table, S, D, parts,
    ACT: tl.constexpr, CENTER: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """table [parts, S, D]: each program adds up one part of one slot's rows"""
    ACC: tl.constexpr = row_weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    program = tl.program_id(0)
    columns, inside = _columns(program % blocks, D, COLS)
    line = (program // blocks).to(tl.int64)
    slot = line % S
    part = line // S
    start = tl.load(span + slot).to(tl.int64)
    count = tl.load(span + S + slot).to(tl.int64)
    place = start + count * part // parts
    end = start + count * (part + 1) // parts
    mu = tl.zeros([COLS], dtype=ACC)
    if CENTER:
        mu = tl.load(mean + columns, mask=inside, other=0.0).to(ACC)
    value = tl.zeros([ROWS, COLS], dtype=ACC)
    while place < end:
        places = place + tl.arange(0, ROWS)
        rows = tl.load(order + places, mask=places < end, other=0)
        n = tl.load(row_weight + rows, mask=places < end, other=0.0).to(ACC)
        mask = (places < end)[:, None] & inside[None, :]
        z = _read(x, rows, columns, row_stride, column_stride, mask, ACC) - mu[None, :]
        value += tl.where(mask, n[:, None] * _activate(z, ACT), 0.0)
        place += ROWS
    tl.store(table + line * D + columns, tl.sum(value, axis=0), mask=inside)
