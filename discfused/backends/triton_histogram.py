"""Triton kernels from features to the table. Conventions: triton_math; symbols: contract."""

import triton
import triton.language as tl

from discfused.backends.triton_math import _activate, _columns, _pull_back, _read, _size


@triton.jit
def _add_within_segment(a, a_opens, b, b_opens):
    return tl.where(b_opens != 0, b, a + b), a_opens | b_opens


@triton.jit(do_not_specialize=["N", "S"])
def whole_columns_kernel(
    x, row_stride, column_stride, row_weight, order, span, total, mean, magnitude, table, N, S, D,
    ACT: tl.constexpr, CENTER: tl.constexpr, GIVEN: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """mean, magnitude and table of COLS columns in one look at x: all N <= ROWS rows are in
    registers, in the order of slots, where a scan adds up each slot's rows."""
    ACC: tl.constexpr = row_weight.dtype.element_ty
    columns, inside = _columns(tl.program_id(0), D, COLS)
    place = tl.arange(0, ROWS)
    rows = tl.load(order + place, mask=place < N, other=0)
    slot = order + N
    row_slot = tl.load(slot + place, mask=place < N, other=-1)
    opens = row_slot != tl.load(slot + place - 1, mask=(place > 0) & (place < N), other=-2)
    closes = row_slot != tl.load(slot + place + 1, mask=place < N - 1, other=-2)
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


@triton.jit
def _fold(sums, parts, width, columns, inside, PARTS: tl.constexpr):
    """The sum of sums [parts, width]"""
    ACC: tl.constexpr = sums.dtype.element_ty
    value = tl.zeros([PARTS, columns.shape[0]], dtype=ACC)
    first = 0
    while first < parts:
        part = first + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & inside[None, :]
        value += _read(sums, part, columns, width, 1, mask, ACC)
        first += PARTS
    return tl.sum(value, axis=0)


@triton.jit
def _segment_sums(value, opens, before):
    """Sums of value [ROWS, COLS] from where a segment opens down to each row; the first segment
    continues that of `before` [COLS], unless it opens. And the last row of that."""
    ROWS: tl.constexpr = value.shape[0]
    row = tl.arange(0, ROWS)
    continues = (row == 0) & (opens == 0)
    value += tl.where(continues[:, None], before[None, :], 0.0)
    flags = tl.broadcast_to(opens[:, None].to(tl.int32), value.shape)
    value, flags = tl.associative_scan((value, flags), 0, _add_within_segment)
    return value, tl.sum(tl.where((row == ROWS - 1)[:, None], value, 0.0), axis=0)


@triton.jit
def _chunk_begin(chunk, chunks, slot, span, N, S):
    """Rows are dealt out to chunks evenly, but no chunk cuts a slot that has at most as many rows
    as a chunk: it begins after it."""
    place = (N * chunk.to(tl.int64) // chunks).to(tl.int32)
    s = tl.load(slot + place, mask=place < N, other=-1)
    start = tl.load(span + s, mask=s >= 0, other=0)
    count = tl.load(span + S + s, mask=s >= 0, other=0)
    moves = (s >= 0) & (start < place) & (count <= N // chunks)
    return tl.where(moves, start + count, place)


@triton.jit
def _read_place(
    place, end, x, row_stride, column_stride, row_weight, order, N, D, columns, ACC: tl.constexpr
):
    """Of the row at one place in the order: its slot, that of the next, its weight and features"""
    slot = tl.load(order + N + place, mask=place < end, other=-1)
    following = tl.load(order + N + place + 1, mask=place < N - 1, other=-1)
    row = tl.load(order + place, mask=place < end, other=0)
    n = tl.load(row_weight + row, mask=slot >= 0, other=0.0).to(ACC)
    line = x + row.to(tl.int64) * row_stride
    mask = columns < tl.where(slot >= 0, D, 0)
    value = tl.load(line + columns * column_stride, mask=mask, other=0.0).to(ACC)
    return slot, following, n, value


@triton.jit
def _add_row(
    slot, following, n, value, sums, slopes, mu, table, slope, columns, inside, D,
    ACT: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """sums and slopes with one more row; written and 0 again after the last row of a slot"""
    if slot >= 0:
        z = value - mu
        sums += n * _activate(z, ACT)
        if SLOPE:
            slopes += _pull_back(z, n, ACT)
        if slot != following:
            line = slot.to(tl.int64) * D + columns
            tl.store(table + line, sums, mask=inside)
            sums = tl.zeros_like(sums)
            if SLOPE:
                tl.store(slope + line, slopes, mask=inside)
                slopes = tl.zeros_like(slopes)
    return sums, slopes


@triton.jit(do_not_specialize=["N", "S", "parts", "chunks"])
def slot_rows_kernel(
    x, row_stride, column_stride, row_weight, order, span, total, moments, mean, magnitude, table,
    slope, carry, carry_slot, N, S, D, parts, chunks,
    ACT: tl.constexpr, CENTER: tl.constexpr, GIVEN: tl.constexpr, SLOPE: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """table (and SLOPE) of COLS columns from one chunk of the rows in the order of slots; mean and
    magnitude from their parts on the way.

    The sum of a slot goes to the table from the chunk that has its last row. A slot may have begun
    in chunks before that: each of them leaves its sum in carry [chunks, D] (the slopes' follow),
    and the slot in carry_slot [chunks], which is -1 elsewhere. So the work is even however uneven
    the classes are.
    """
    ACC: tl.constexpr = row_weight.dtype.element_ty
    blocks = tl.cdiv(D, COLS)
    block = tl.program_id(0) % blocks
    chunk = tl.program_id(0) // blocks
    columns, inside = _columns(block, D, COLS)
    if chunk == 0:
        size = _fold(moments + D, parts, 2 * D, columns, inside, PARTS)
        tl.store(magnitude + columns, size, mask=inside)
    mu = tl.zeros([COLS], dtype=ACC)
    if CENTER:
        if GIVEN:
            mu = tl.load(mean + columns, mask=inside, other=0.0).to(ACC)
        else:
            whole = tl.load(total).to(ACC)
            mu = _fold(moments, parts, 2 * D, columns, inside, PARTS)
            mu = mu / tl.where(whole == 0, 1.0, whole)
            if chunk == 0:
                tl.store(mean + columns, mu, mask=inside)

    slot = order + N
    place = _chunk_begin(chunk, chunks, slot, span, N, S)
    end = _chunk_begin(chunk + 1, chunks, slot, span, N, S)
    begin = place
    sums = tl.zeros([COLS], dtype=ACC)
    slopes = tl.zeros([COLS], dtype=ACC)
    while place < end:  # four rows are on their way at a time
        s0, f0, n0, x0 = _read_place(
            place, end, x, row_stride, column_stride, row_weight, order, N, D, columns, ACC
        )
        s1, f1, n1, x1 = _read_place(
            place + 1, end, x, row_stride, column_stride, row_weight, order, N, D, columns, ACC
        )
        s2, f2, n2, x2 = _read_place(
            place + 2, end, x, row_stride, column_stride, row_weight, order, N, D, columns, ACC
        )
        s3, f3, n3, x3 = _read_place(
            place + 3, end, x, row_stride, column_stride, row_weight, order, N, D, columns, ACC
        )
        sums, slopes = _add_row(
            s0, f0, n0, x0, sums, slopes, mu, table, slope, columns, inside, D, ACT, SLOPE
        )
        sums, slopes = _add_row(
            s1, f1, n1, x1, sums, slopes, mu, table, slope, columns, inside, D, ACT, SLOPE
        )
        sums, slopes = _add_row(
            s2, f2, n2, x2, sums, slopes, mu, table, slope, columns, inside, D, ACT, SLOPE
        )
        sums, slopes = _add_row(
            s3, f3, n3, x3, sums, slopes, mu, table, slope, columns, inside, D, ACT, SLOPE
        )
        place += 4

    s = tl.load(slot + end - 1, mask=begin < end, other=-1)
    cut = (s >= 0) & (s == tl.load(slot + end, mask=end < N, other=-1))
    if block == 0:
        tl.store(carry_slot + chunk, tl.where(cut, s, -1))
    if cut:
        line = carry + chunk.to(tl.int64) * D + columns
        tl.store(line, sums, mask=inside)
        if SLOPE:
            tl.store(line + chunks.to(tl.int64) * D, slopes, mask=inside)

    first = (S * chunk.to(tl.int64) // chunks).to(tl.int32)
    last = (S * (chunk.to(tl.int64) + 1) // chunks).to(tl.int32)
    while first < last:
        slots = first + tl.arange(0, ROWS)
        empty = tl.load(span + S + slots, mask=slots < last, other=1) == 0
        mask = empty[:, None] & inside[None, :]
        line = slots.to(tl.int64)[:, None] * D + columns[None, :]
        zero = tl.zeros([ROWS, COLS], dtype=ACC)
        tl.store(table + line, zero, mask=mask)
        if SLOPE:
            tl.store(slope + line, zero, mask=mask)
        first += ROWS


@triton.jit
def _add_carry(table, carry, carry_slot, chunks, columns, inside, D, LINES: tl.constexpr):
    """table += what slot_rows_kernel left in `carry`, where the sums of a slot follow each other"""
    ACC: tl.constexpr = table.dtype.element_ty
    before = tl.zeros([columns.shape[0]], dtype=ACC)
    first = 0
    while first < chunks:
        lines = first + tl.arange(0, LINES)
        there = lines < chunks
        s = tl.load(carry_slot + lines, mask=there, other=-1)
        if tl.max(s, axis=0) >= 0:
            previous = tl.load(carry_slot + lines - 1, mask=there & (lines > 0), other=-2)
            following = tl.load(carry_slot + lines + 1, mask=lines < chunks - 1, other=-2)
            mask = (s >= 0)[:, None] & inside[None, :]
            value = _read(carry, lines, columns, D, 1, mask, ACC)
            value, before = _segment_sums(value, there & (s != previous), before)
            line = table + s.to(tl.int64)[:, None] * D + columns[None, :]
            mask = mask & (s != following)[:, None]
            value += tl.load(line, mask=mask, other=0.0).to(ACC)
            tl.store(line, value, mask=mask)
        first += LINES


@triton.jit(do_not_specialize=["chunks"])
def carry_kernel(table, carry, carry_slot, D, chunks, LINES: tl.constexpr, COLS: tl.constexpr):
    """The table as it is to be, for those who want it itself; terms adds up on its own."""
    columns, inside = _columns(tl.program_id(0), D, COLS)
    _add_carry(table, carry, carry_slot, chunks, columns, inside, D, LINES)
