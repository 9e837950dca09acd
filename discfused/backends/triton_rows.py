"""Triton kernels of the stage `rows`, which puts the rows of hard labels in the order of classes.

For N rows and S slots the stage hands on two tensors, in which these lie one after the other:

    index   order      [N]      the rows slot after slot, each slot's in their own order; those that
                                do not count come last, as those of a slot S
            row_slot   [N]      the slots of these rows
            start      [S + 1]  where a slot's rows begin in `order`,
            count      [S + 1]  and how many there are
            slot_class [S]      the class of a slot, -1 for an empty one
    weight  size       [S]      n_c of the slot's class
            total      [1]      the sum of all sizes
            row_weight [N]      if there are sample weights: of the rows in `order`, 0 of a row that
                                does not count

Where C <= N a slot is a class. Else S = N, and the slot of a class is where its rows begin in
`order`, so a class of k rows is followed by k - 1 empty slots: nothing needs the number of classes
present. `bad` [1] gets the number of labels that are out of range, if there are any.

A program has OWN items: rows, or the classes that follow them. compare_rows_kernel compares each
with ROWS rows: with all, where they are no more (LAST), else with those of its run, which puts runs
in order. merge_rows_kernel finds the place of each row in the other runs; or, where these are many,
in those of its group, which makes longer runs. Scratch has two sets of runs, made from one another:

    numbers [4 N + runs]  of each set the classes [N], C where a row does not count, and the rows
                          [N]; then how many labels of each first run are out of range
    masses  [2 N + runs]  of each set, if there are weights, the sum of those of a row's class in
                          its run [N]; then the sum of all of each first run
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
    """class (C for a row that does not count, 2^31 - 1 for none), weight, 1 if out of range"""
    inside = rows < N
    known = inside & (label != ignore_index)
    valid = known & (label >= 0) & (label < C)
    w = tl.where(valid, w, 0.0)
    key = tl.where(w != 0, label, C).to(tl.int32)
    return tl.where(inside, key, 2147483647), w, known.to(tl.int32) - valid.to(tl.int32)


@triton.jit
def _store_items(
    index, weight, items, rows, key, w, place, begin, k, n, N, C,
    PRESENT: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Items are rows in their places, or classes, of which k rows begin at `begin` and weigh n."""
    inside = items < N
    counts = key < C
    if PRESENT:  # the first row of a class has its slot; the only class to follow the rows is C
        S = N
        slot = tl.where(inside, place, N)
        row_slot = tl.where(counts, begin, N)
        has_slot = items <= N
        begin = tl.where(inside, place, begin)
        k = tl.where(inside & ((key >= C) | (place != row_slot)), 0, k)
    else:
        S = C
        slot = key
        row_slot = key
        has_slot = (items >= N) & (key <= C)
    tl.store(index + place, rows, mask=inside)
    tl.store(index + N + place, row_slot, mask=inside)
    if WEIGHTED:
        tl.store(weight + S + 1 + place, w, mask=inside)
    start = index + 2 * N
    tl.store(start + slot, begin, mask=has_slot)
    tl.store(start + S + 1 + slot, k, mask=has_slot)
    has_class = has_slot & (slot < S)
    tl.store(start + 2 * (S + 1) + slot, tl.where(k > 0, key, -1), mask=has_class)
    tl.store(weight + slot, tl.where(k > 0, n, 0.0), mask=has_class)


@triton.jit
def _store_whole(weight, bad, whole, wrong, N, C, PRESENT: tl.constexpr):
    tl.store(weight + (N if PRESENT else C), whole)
    if wrong > 0:  # an earlier report must not be lost
        tl.store(bad, wrong)


@triton.jit(do_not_specialize=["N", "C", "ignore_index"])
def compare_rows_kernel(
    target, target_stride, sample_weight, weight_stride, index, weight, bad, numbers, masses,
    N, C, ignore_index,
    LAST: tl.constexpr, PRESENT: tl.constexpr, WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = weight.dtype.element_ty
    program = tl.program_id(0)
    first = 0 if LAST else program * OWN // ROWS * ROWS
    rows, label, w = _read_labels(
        first, target, target_stride, sample_weight, weight_stride, N, WEIGHTED, ROWS, ACC
    )
    items, own_label, own_w = _read_labels(
        program * OWN, target, target_stride, sample_weight, weight_stride, N, WEIGHTED, OWN, ACC
    )
    key, w, out_of_range = _classes(rows, label, w, N, C, ignore_index)
    own_key, own_w, _ = _classes(items, own_label, own_w, N, C, ignore_index)
    if LAST:
        own_key = tl.where(items < N, own_key, C if PRESENT else items - N)
    equal = key[:, None] == own_key[None, :]
    smaller = key[:, None] < own_key[None, :]
    before = smaller | (equal & (rows[:, None] < items[None, :]))
    place = tl.sum(before.to(tl.int32), axis=0)
    n = tl.zeros([OWN], dtype=ACC)
    if WEIGHTED:
        n = tl.sum(tl.where(equal, w[:, None], 0.0), axis=0)
    whole = tl.sum(w, axis=0)
    wrong = tl.sum(out_of_range, axis=0)
    if LAST:
        begin = tl.sum(smaller.to(tl.int32), axis=0)
        k = tl.sum(equal.to(tl.int32), axis=0)
        if not WEIGHTED:
            n = k.to(ACC)
        _store_items(
            index, weight, items, items, own_key, own_w, place, begin, k, n, N, C,
            PRESENT, WEIGHTED,
        )  # fmt: skip
        if program == 0:
            _store_whole(weight, bad, whole, wrong, N, C, PRESENT)
    else:
        inside = items < N
        tl.store(numbers + first + place, own_key, mask=inside)
        tl.store(numbers + N + first + place, items, mask=inside)
        if WEIGHTED:
            tl.store(masses + first + place, n, mask=inside)
        if program * OWN == first:
            run = first // ROWS
            tl.store(numbers + 4 * N + run, wrong)
            tl.store(masses + 2 * N + run, whole)


@triton.jit(do_not_specialize=["N", "C", "length", "group", "read", "runs"])
def merge_rows_kernel(
    sample_weight, weight_stride, index, weight, bad, numbers, masses,
    N, C, length, group, read, runs,
    LAST: tl.constexpr, PRESENT: tl.constexpr, WEIGHTED: tl.constexpr,
    RUNS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Of runs of `length` rows, a power of two, in groups of so many rows; reads one set of runs
    (`read`: 0 or 1) and writes the other."""
    ACC: tl.constexpr = weight.dtype.element_ty
    program = tl.program_id(0)
    items = program * OWN + tl.arange(0, OWN)
    inside = items < N
    label, mass = numbers + 2 * N * read, masses + N * read
    key = tl.load(label + items, mask=inside, other=0)
    rows = tl.load(label + N + items, mask=inside, other=0)
    first = 0 if LAST else program * OWN // group * group
    end = N if LAST else tl.minimum(first + group, N)
    if LAST:
        key = tl.where(inside, key, C if PRESENT else items - N)
    begin = tl.zeros([OWN, RUNS], dtype=tl.int32)
    place = tl.zeros([OWN, RUNS], dtype=tl.int32)
    k = tl.zeros([OWN, RUNS], dtype=tl.int32)
    n = tl.zeros([OWN, RUNS], dtype=ACC)
    start = first
    while start < end:
        run = (start + tl.arange(0, RUNS) * length)[None, :]
        stop = tl.minimum(run + length, end)
        # Where in the run the rows of an item's class begin and end.
        low = run + tl.zeros([OWN, RUNS], dtype=tl.int32)
        high = low
        step = length
        while step > 0:
            at = low + step
            smaller = tl.load(label + at - 1, mask=at <= stop, other=2147483647) < key[:, None]
            low = tl.where(smaller, at, low)
            at = high + step
            larger = tl.load(label + at - 1, mask=at <= stop, other=2147483647) > key[:, None]
            high = tl.where(larger, high, at)
            step = step // 2
        begin += low - run
        k += high - low
        # Rows of a class come in the order of runs.
        place += tl.minimum(tl.maximum(items[:, None], low), high) - run
        if WEIGHTED:
            n += tl.load(mass + low, mask=low < high, other=0.0).to(ACC)
        start += RUNS * length
    place = first + tl.sum(place, axis=1)
    n = tl.sum(n, axis=1)
    if LAST:
        w = tl.zeros([OWN], dtype=ACC)
        if WEIGHTED:
            wide = rows.to(tl.int64)
            counts = inside & (key < C)
            w = tl.load(sample_weight + wide * weight_stride, mask=counts, other=0.0).to(ACC)
        k = tl.sum(k, axis=1)
        if not WEIGHTED:
            n = k.to(ACC)
        begin = tl.sum(begin, axis=1)
        _store_items(
            index, weight, items, rows, key, w, place, begin, k, n, N, C, PRESENT, WEIGHTED
        )
        if program == 0:
            whole = tl.zeros([RUNS * OWN], dtype=ACC)
            wrong = tl.zeros([RUNS * OWN], dtype=tl.int32)
            first = 0
            while first < runs:
                parts = first + tl.arange(0, RUNS * OWN)
                whole += tl.load(masses + 2 * N + parts, mask=parts < runs, other=0.0).to(ACC)
                wrong += tl.load(numbers + 4 * N + parts, mask=parts < runs, other=0)
                first += RUNS * OWN
            whole, wrong = tl.sum(whole, axis=0), tl.sum(wrong, axis=0)
            _store_whole(weight, bad, whole, wrong, N, C, PRESENT)
    else:
        label, mass = numbers + 2 * N * (1 - read), masses + N * (1 - read)
        tl.store(label + place, key, mask=inside)
        tl.store(label + N + place, rows, mask=inside)
        if WEIGHTED:
            tl.store(mass + place, n, mask=inside)
