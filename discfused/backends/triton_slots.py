"""Triton kernels for the rows: which slot each belongs to, and all rows in the order of slots.

Both ways need one launch (members_kernel) and no atomics. They write for N rows and S slots

    slot        [N] int32  the row's slot, -1 for a row that does not count
    row_weight  [N] acc    n_i
    order    [2, N] int32  the rows slot after slot, each slot's in their own order, then the rest;
                           and the slots of these rows
    span     [2, S] int32  where a slot's rows begin in `order`, and how many there are
    share       [S] acc    the slot's part of all weight
    slot_class  [S] int64  the class of a slot, -1 for an empty one
    total       [1] acc    the sum of n_i
    bad         [1] int32  how many labels are out of range; written only if there are any
"""

import triton
import triton.language as tl

from discfused.backends.triton_math import _columns, _read, _size


@triton.jit
def _read_rows(
    rows, target, weight, sample_weight, N, C, ignore_index,
    WEIGHTED: tl.constexpr, SAMPLE_WEIGHTED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """label, n_i (0 for a row that does not count), and whether the label is out of range"""
    inside = rows < N
    label = tl.load(target + rows, mask=inside, other=-1)
    known = inside & (label != ignore_index)
    valid = known & (label >= 0) & (label < C)
    n = tl.where(valid, 1.0, 0.0).to(ACC)
    if WEIGHTED:
        n = tl.load(weight + label, mask=valid, other=0.0).to(ACC)
    if SAMPLE_WEIGHTED:
        # Where n is 0 already, a sample weight that is NaN must not bring the row back.
        s = tl.load(sample_weight + rows, mask=inside, other=0.0).to(ACC)
        n = tl.where(n == 0, 0.0, n * s)
    return label, n, known & ~valid


@triton.jit
def _class_slots(
    program, programs, target, weight, sample_weight, slot, row_weight, order, span, share,
    slot_class, total, bad, N, S, C, ignore_index,
    WEIGHTED: tl.constexpr, SAMPLE_WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Slot = class. A program owns SLOTS slots and reads all labels twice (they stay in cache):
    counting those before its slots tells where these begin, so no program waits for another.

    Slot S stands for the rows that do not count: they come last in the order.
    """
    ACC: tl.constexpr = row_weight.dtype.element_ty
    slots = program * SLOTS + tl.arange(0, SLOTS)
    before = tl.zeros([ROWS, SLOTS], dtype=tl.int32)
    count = tl.zeros([ROWS, SLOTS], dtype=tl.int32)
    mass = tl.zeros([ROWS, SLOTS], dtype=ACC)
    weights = tl.zeros([ROWS], dtype=ACC)
    wrong = tl.zeros([ROWS], dtype=tl.int32)
    chunk = 0
    while chunk * ROWS < N:
        rows = chunk * ROWS + tl.arange(0, ROWS)
        label, n, out_of_range = _read_rows(
            rows, target, weight, sample_weight, N, C, ignore_index,
            WEIGHTED, SAMPLE_WEIGHTED, ACC,
        )  # fmt: skip
        counts = n != 0
        weights += n
        wrong += out_of_range.to(tl.int32)
        key = tl.where(counts, label, S).to(tl.int32)
        # The programs share the work of writing down what each row is.
        if chunk % programs == program:
            tl.store(slot + rows, tl.where(counts, key, -1), mask=rows < N)
            tl.store(row_weight + rows, n, mask=rows < N)

        key = tl.where(rows < N, key, S + 1)[:, None]
        equal = key == slots[None, :]
        before += (key < slots[None, :]).to(tl.int32)
        count += equal.to(tl.int32)
        mass += tl.where(equal, n[:, None], 0.0)
        chunk += 1
    whole = tl.sum(weights, axis=0)

    inside = slots < S
    position = tl.sum(before, axis=0)
    tl.store(span + slots, position, mask=inside)
    tl.store(span + S + slots, tl.sum(count, axis=0), mask=inside)
    tl.store(share + slots, tl.sum(mass, axis=0) / tl.where(whole == 0, 1.0, whole), mask=inside)
    tl.store(slot_class + slots, slots.to(tl.int64), mask=inside)
    if program == 0:
        tl.store(total, whole)
        wrong_labels = tl.sum(wrong, axis=0)
        if wrong_labels > 0:
            tl.store(bad, wrong_labels)

    chunk = 0
    while chunk * ROWS < N:
        rows = chunk * ROWS + tl.arange(0, ROWS)
        label, n, out_of_range = _read_rows(
            rows, target, weight, sample_weight, N, C, ignore_index,
            WEIGHTED, SAMPLE_WEIGHTED, ACC,
        )  # fmt: skip
        key = tl.where(n != 0, label, S).to(tl.int32)
        equal = (key[:, None] == slots[None, :]) & (rows < N)[:, None] & (slots <= S)[None, :]
        rank = tl.cumsum(equal.to(tl.int32), axis=0)
        place = order + position[None, :] + rank - 1
        tl.store(place, tl.broadcast_to(rows[:, None], [ROWS, SLOTS]), mask=equal)
        own = tl.where(slots < S, slots, -1)
        tl.store(place + N, tl.broadcast_to(own[None, :], [ROWS, SLOTS]), mask=equal)
        position += tl.sum(equal.to(tl.int32), axis=0)
        chunk += 1


@triton.jit
def _present_slots(
    program, target, weight, sample_weight, slot, row_weight, order, span, share, slot_class,
    total, bad, N, S, C, ignore_index,
    WEIGHTED: tl.constexpr, SAMPLE_WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Slots for the classes present in the batch (S = N), in the order of classes.

    The slot of a class is the number of rows that come before it in `order`, so a class of k rows
    is followed by k - 1 empty slots: each row finds its slot by counting, and nobody needs to know
    how many classes there are. A program owns ROWS rows and compares them with all rows; a row
    writes what there is to say about the slot at its own place in the order.
    """
    ACC: tl.constexpr = row_weight.dtype.element_ty
    rows = program * ROWS + tl.arange(0, ROWS)
    label, n, _ = _read_rows(
        rows, target, weight, sample_weight, N, C, ignore_index, WEIGHTED, SAMPLE_WEIGHTED, ACC
    )
    key = tl.where(n != 0, label, C)  # rows that do not count come last
    before = tl.zeros([ROWS, OTHERS], dtype=tl.int32)
    rank = tl.zeros([ROWS, OTHERS], dtype=tl.int32)
    count = tl.zeros([ROWS, OTHERS], dtype=tl.int32)
    mass = tl.zeros([ROWS, OTHERS], dtype=ACC)
    weights = tl.zeros([OTHERS], dtype=ACC)
    wrong = tl.zeros([OTHERS], dtype=tl.int32)
    first = 0
    while first < N:
        others = first + tl.arange(0, OTHERS)
        other_label, other_n, out_of_range = _read_rows(
            others, target, weight, sample_weight, N, C, ignore_index,
            WEIGHTED, SAMPLE_WEIGHTED, ACC,
        )  # fmt: skip
        weights += other_n
        wrong += out_of_range.to(tl.int32)
        other_key = tl.where(other_n != 0, other_label, C)
        other_key = tl.where(others < N, other_key, C + 1)[None, :]
        equal = other_key == key[:, None]
        before += (other_key < key[:, None]).to(tl.int32)
        rank += (equal & (others[None, :] < rows[:, None])).to(tl.int32)
        count += equal.to(tl.int32)
        mass += tl.where(equal, other_n[None, :], 0.0)
        first += OTHERS
    before, rank = tl.sum(before, axis=1), tl.sum(rank, axis=1)
    count, mass = tl.sum(count, axis=1), tl.sum(mass, axis=1)
    whole = tl.sum(weights, axis=0)

    inside = rows < N
    counts = n != 0
    tl.store(slot + rows, tl.where(counts, before, -1), mask=inside)
    tl.store(row_weight + rows, n, mask=inside)
    place = before + rank
    opens = counts & (rank == 0)
    tl.store(order + place, rows, mask=inside)
    tl.store(order + N + place, tl.where(counts, before, -1), mask=inside)
    tl.store(span + place, place, mask=inside)
    tl.store(span + S + place, tl.where(opens, count, 0), mask=inside)
    part = mass / tl.where(whole == 0, 1.0, whole)
    tl.store(share + place, tl.where(opens, part, 0.0), mask=inside)
    tl.store(slot_class + place, tl.where(opens, label, -1), mask=inside)
    if program == 0:
        tl.store(total, whole)
        wrong_labels = tl.sum(wrong, axis=0)
        if wrong_labels > 0:
            tl.store(bad, wrong_labels)


@triton.jit
def _read_features(
    row, end, x, row_stride, column_stride, target, weight, sample_weight, C, ignore_index,
    columns, inside,
    WEIGHTED: tl.constexpr, SAMPLE_WEIGHTED: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """n [ROWS, 1] and features [ROWS, COLS], 0 in rows that do not count"""
    rows = row + tl.arange(0, ROWS)
    _, n, _ = _read_rows(
        rows, target, weight, sample_weight, end, C, ignore_index, WEIGHTED, SAMPLE_WEIGHTED, ACC
    )
    # Features do not wait for the labels to say which rows count.
    mask = (rows < end)[:, None] & inside[None, :]
    value = _read(x, rows, columns, row_stride, column_stride, mask, ACC)
    n = n[:, None]
    return n, tl.where(n != 0, value, 0.0)


@triton.jit
def _moments(
    program, x, row_stride, column_stride, target, weight, sample_weight, moments, N, C, D,
    ignore_index, parts,
    ACT: tl.constexpr, WEIGHTED: tl.constexpr, SAMPLE_WEIGHTED: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """moments [parts, 2, D]: sums of n x and of the magnitude n |x| over one part of the rows"""
    blocks = tl.cdiv(D, COLS)
    columns, inside = _columns(program % blocks, D, COLS)
    part = (program // blocks).to(tl.int64)
    row = N * part // parts
    end = N * (part + 1) // parts
    signed = tl.zeros([ROWS, COLS], dtype=ACC)
    size = tl.zeros([ROWS, COLS], dtype=ACC)
    while row < end:  # two tiles are on their way at a time
        n0, x0 = _read_features(
            row, end, x, row_stride, column_stride, target, weight, sample_weight, C,
            ignore_index, columns, inside, WEIGHTED, SAMPLE_WEIGHTED, ACC, ROWS,
        )  # fmt: skip
        n1, x1 = _read_features(
            row + ROWS, end, x, row_stride, column_stride, target, weight, sample_weight, C,
            ignore_index, columns, inside, WEIGHTED, SAMPLE_WEIGHTED, ACC, ROWS,
        )  # fmt: skip
        signed += n0 * x0
        size += n0 * _size(x0, ACT)
        signed += n1 * x1
        size += n1 * _size(x1, ACT)
        row += 2 * ROWS
    line = moments + part * 2 * D + columns
    tl.store(line, tl.sum(signed, axis=0), mask=inside)
    tl.store(line + D, tl.sum(size, axis=0), mask=inside)


@triton.jit(do_not_specialize=["N", "S", "C", "ignore_index", "programs", "parts"])
def members_kernel(
    target, weight, sample_weight, slot, row_weight, order, span, share, slot_class, total, bad,
    x, row_stride, column_stride, moments, N, S, C, D, ignore_index, programs, parts,
    PRESENT: tl.constexpr, MOMENTS: tl.constexpr, WEIGHTED: tl.constexpr,
    SAMPLE_WEIGHTED: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr,
    MOMENT_ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Two jobs that need nothing of each other, in one launch: the first `programs` programs deal
    with the rows' slots, the others with the moments of the features (MOMENTS)."""
    program = tl.program_id(0)
    if program < programs:
        if PRESENT:
            _present_slots(
                program, target, weight, sample_weight, slot, row_weight, order, span, share,
                slot_class, total, bad, N, S, C, ignore_index,
                WEIGHTED, SAMPLE_WEIGHTED, SLOTS, ROWS,
            )  # fmt: skip
        else:
            _class_slots(
                program, programs, target, weight, sample_weight, slot, row_weight, order, span,
                share, slot_class, total, bad, N, S, C, ignore_index,
                WEIGHTED, SAMPLE_WEIGHTED, ROWS, SLOTS,
            )  # fmt: skip
    elif MOMENTS:
        _moments(
            program - programs, x, row_stride, column_stride, target, weight, sample_weight,
            moments, N, C, D, ignore_index, parts,
            ACT, WEIGHTED, SAMPLE_WEIGHTED, row_weight.dtype.element_ty, MOMENT_ROWS, COLS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["S"])
def share_kernel(row_weight, order, span, total, share, S, ROWS: tl.constexpr):
    """The part of all weight that is a slot's, from its rows; a program owns a slot."""
    ACC: tl.constexpr = row_weight.dtype.element_ty
    slot = tl.program_id(0)
    position = tl.load(span + slot)
    end = position + tl.load(span + S + slot)
    mass = tl.zeros([ROWS], dtype=ACC)
    while position < end:
        places = position + tl.arange(0, ROWS)
        rows = tl.load(order + places, mask=places < end, other=0)
        mass += tl.load(row_weight + rows, mask=places < end, other=0.0).to(ACC)
        position += ROWS
    whole = tl.load(total).to(ACC)
    tl.store(share + slot, tl.sum(mass, axis=0) / tl.where(whole == 0, 1.0, whole))


@triton.jit
def report_kernel(count, bad):
    """bad = count, if there are any: an earlier report must not be lost"""
    wrong_labels = tl.load(count)
    if wrong_labels > 0:
        tl.store(bad, wrong_labels.to(tl.int32))
