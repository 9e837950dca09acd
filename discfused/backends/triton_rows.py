"""Triton kernels of the stage `rows`, which puts the rows of hard labels in the order of classes.

For N rows and S slots the stage hands on two tensors, in which these lie one after the other:

    index   order      [N]      the rows slot after slot, each slot's in their own order; those that
                                do not count come last, as those of a slot S
            row_slot   [N]      the slots of these rows
            start      [S + 1]  where a slot's rows begin in `order`,
            count      [S + 1]  and how many there are
            slot_class [S]      the class of a slot, -1 for an empty one
    weight  row_weight [N]      the sample weights of the rows in `order`; 0 if a row does not count
            size       [S]      n_c of the slot's class
            total      [1]      the sum of all sizes

Where C <= N a slot is a class (rows_kernel). Else S = N, and the slot of a class is where its rows
begin in `order`, so a class of k rows is followed by k - 1 empty slots: nothing needs the number of
classes present (present_rows_kernel).

`bad` [1] gets the number of labels that are out of range, and is written only if there are any.
"""

import triton
import triton.language as tl


@triton.jit
def _read_labels(
    first, target, target_stride, sample_weight, weight_stride, N,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """rows, their labels and their weights"""
    rows = first + tl.arange(0, ROWS)
    wide = rows.to(tl.int64)
    label = tl.load(target + wide * target_stride, mask=rows < N, other=0)
    w = tl.full([ROWS], 1.0, ACC)
    if WEIGHTED:
        w = tl.load(sample_weight + wide * weight_stride, mask=rows < N, other=0.0).to(ACC)
    return rows, label, w


@triton.jit
def _classes(rows, label, w, N, C, ignore_index):
    """class (C for a row that does not count, 2^31 - 1 for none), weight, whether out of range"""
    inside = rows < N
    known = inside & (label != ignore_index)
    valid = known & (label >= 0) & (label < C)
    w = tl.where(valid, w, 0.0)
    key = tl.where(w != 0, label, C).to(tl.int32)
    return tl.where(inside, key, 2147483647), w, known & ~valid


@triton.jit
def _store_whole(total, whole, bad, wrong):
    tl.store(total, tl.sum(whole, axis=0))
    wrong_labels = tl.sum(wrong, axis=0)
    if wrong_labels > 0:  # an earlier report must not be lost
        tl.store(bad, wrong_labels)


@triton.jit(do_not_specialize=["N", "C", "ignore_index"])
def rows_kernel(
    target, target_stride, sample_weight, weight_stride, index, weight, bad, N, C, ignore_index,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """A program owns CLASSES classes (of C + 1: the rows that do not count have a slot of their
    own) and reads all labels twice; they stay in cache. Counting the rows of smaller classes gives
    the place of its own, so no program waits."""
    ACC: tl.constexpr = weight.dtype.element_ty
    program = tl.program_id(0)
    classes = program * CLASSES + tl.arange(0, CLASSES)
    place = tl.zeros([CLASSES], dtype=tl.int32)
    k = tl.zeros([CLASSES], dtype=tl.int32)
    n = tl.zeros([CLASSES], dtype=ACC)
    whole = tl.zeros([ROWS], dtype=ACC)
    wrong = tl.zeros([ROWS], dtype=tl.int32)
    first = 0
    # The next labels are on their way while these are counted.
    rows, label, w = _read_labels(
        first, target, target_stride, sample_weight, weight_stride, N, WEIGHTED, ROWS, ACC
    )
    while first < N:
        key, n_row, out_of_range = _classes(rows, label, w, N, C, ignore_index)
        first += ROWS
        rows, label, w = _read_labels(
            first, target, target_stride, sample_weight, weight_stride, N, WEIGHTED, ROWS, ACC
        )
        equal = key[:, None] == classes[None, :]
        place += tl.sum((key[:, None] < classes[None, :]).to(tl.int32), axis=0)
        k += tl.sum(equal.to(tl.int32), axis=0)
        if WEIGHTED:
            n += tl.sum(tl.where(equal, n_row[:, None], 0.0), axis=0)
        whole += n_row
        wrong += out_of_range.to(tl.int32)

    row_slot, start = index + N, index + 2 * N
    size = weight + N
    if not WEIGHTED:
        n = k.to(ACC)
    tl.store(start + classes, place, mask=classes <= C)
    tl.store(start + C + 1 + classes, k, mask=classes <= C)
    tl.store(start + 2 * (C + 1) + classes, tl.where(k > 0, classes, -1), mask=classes < C)
    tl.store(size + classes, n, mask=classes < C)
    if program == 0:
        _store_whole(size + C, whole, bad, wrong)

    first = 0
    rows, label, w = _read_labels(
        first, target, target_stride, sample_weight, weight_stride, N, WEIGHTED, ROWS, ACC
    )
    while first < N:
        row = rows
        key, n_row, _ = _classes(rows, label, w, N, C, ignore_index)
        first += ROWS
        rows, label, w = _read_labels(
            first, target, target_stride, sample_weight, weight_stride, N, WEIGHTED, ROWS, ACC
        )
        equal = key[:, None] == classes[None, :]
        rank = tl.cumsum(equal.to(tl.int32), axis=0)
        places = place[None, :] + rank - 1
        shape: tl.constexpr = [ROWS, CLASSES]
        tl.store(index + places, tl.broadcast_to(row[:, None], shape), mask=equal)
        tl.store(row_slot + places, tl.broadcast_to(classes[None, :], shape), mask=equal)
        tl.store(weight + places, tl.broadcast_to(n_row[:, None], shape), mask=equal)
        place += tl.sum(equal.to(tl.int32), axis=0)


@triton.jit(do_not_specialize=["N", "C", "ignore_index"])
def present_rows_kernel(
    target, target_stride, sample_weight, weight_stride, index, weight, bad, N, C, ignore_index,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """A program owns OWN rows, and compares their classes with all: how many rows are of smaller
    ones, and how many are earlier ones of the same, is all that there is to know."""
    ACC: tl.constexpr = weight.dtype.element_ty
    program = tl.program_id(0)
    own, own_label, own_w = _read_labels(
        program * OWN, target, target_stride, sample_weight, weight_stride, N, WEIGHTED, OWN, ACC
    )
    own_key, own_n, _ = _classes(own, own_label, own_w, N, C, ignore_index)
    begin = tl.zeros([OWN], dtype=tl.int32)
    earlier = tl.zeros([OWN], dtype=tl.int32)
    k = tl.zeros([OWN], dtype=tl.int32)
    n = tl.zeros([OWN], dtype=ACC)
    left_out = tl.zeros([ROWS], dtype=tl.int32)
    whole = tl.zeros([ROWS], dtype=ACC)
    wrong = tl.zeros([ROWS], dtype=tl.int32)
    first = 0
    while first < N:
        rows, label, w = _read_labels(
            first, target, target_stride, sample_weight, weight_stride, N, WEIGHTED, ROWS, ACC
        )
        key, n_row, out_of_range = _classes(rows, label, w, N, C, ignore_index)
        equal = key[:, None] == own_key[None, :]
        begin += tl.sum((key[:, None] < own_key[None, :]).to(tl.int32), axis=0)
        earlier += tl.sum((equal & (rows[:, None] < own[None, :])).to(tl.int32), axis=0)
        k += tl.sum(equal.to(tl.int32), axis=0)
        n += tl.sum(tl.where(equal, n_row[:, None], 0.0), axis=0)
        left_out += (key == C).to(tl.int32)
        whole += n_row
        wrong += out_of_range.to(tl.int32)
        first += ROWS

    row_slot, start = index + N, index + 2 * N
    slot_count, slot_class = start + N + 1, start + 2 * (N + 1)
    place = begin + earlier
    inside = own < N
    counts = own_key < C
    opens = counts & (earlier == 0)
    tl.store(index + place, own, mask=inside)
    tl.store(row_slot + place, tl.where(counts, begin, N), mask=inside)
    tl.store(weight + place, own_n, mask=inside)
    tl.store(start + place, place, mask=inside)
    tl.store(slot_count + place, tl.where(opens, k, 0), mask=inside)
    tl.store(slot_class + place, tl.where(opens, own_key, -1), mask=inside)
    tl.store(weight + N + place, tl.where(opens, n, 0.0), mask=inside)
    if program == 0:
        tl.store(start + N, N - tl.sum(left_out, axis=0))
        tl.store(slot_count + N, tl.sum(left_out, axis=0))
        _store_whole(weight + 2 * N, whole, bad, wrong)


@triton.jit(do_not_specialize=["N", "S"])
def sizes_kernel(weight_of_row, whole, wrong, index, weight, bad, N, S, ROWS: tl.constexpr):
    """`weight` where the rest is known from a sort, and `bad`; a program owns a slot."""
    ACC: tl.constexpr = weight.dtype.element_ty
    slot = tl.program_id(0)
    start = index + 2 * N
    place = tl.load(start + slot)
    end = place + tl.load(start + S + 1 + slot)
    mass = tl.zeros([ROWS], dtype=ACC)
    while place < end:
        places = place + tl.arange(0, ROWS)
        rows = tl.load(index + places, mask=places < end, other=0)
        w = tl.load(weight_of_row + rows, mask=places < end, other=0.0).to(ACC)
        tl.store(weight + places, w, mask=places < end)
        mass += w
        place += ROWS
    if slot < S:
        tl.store(weight + N + slot, tl.sum(mass, axis=0))
    else:
        tl.store(weight + N + S, tl.load(whole).to(ACC))
        wrong_labels = tl.load(wrong)
        if wrong_labels > 0:  # an earlier report must not be lost
            tl.store(bad, wrong_labels.to(tl.int32))
