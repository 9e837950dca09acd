"""Triton kernels from the table to the terms, and to what backward needs of them."""

import triton
import triton.language as tl

from discfused.backends.triton_histogram import _add_carry
from discfused.backends.triton_math import _columns, _number, _read


@triton.jit(do_not_specialize=["S", "chunks", "eps"])
def feature_terms_kernel(
    table, slope, carry, carry_slot, magnitude, feature_coef, sums, S, D, chunks, eps,
    SLOPE: tl.constexpr, LINES: tl.constexpr, SLOTS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """1 / T and sum of P^2 of every feature, after what the table lacks. sums [blocks, S + 2]: over
    the COLS features of one block, those of P for every slot, of their impurities, and the number
    of live ones."""
    ACC: tl.constexpr = table.dtype.element_ty
    block = tl.program_id(0)
    columns, inside = _columns(block, D, COLS)
    _add_carry(table, carry, carry_slot, chunks, columns, inside, D, LINES)
    if SLOPE:
        line = carry + chunks.to(tl.int64) * D
        _add_carry(slope, line, carry_slot, chunks, columns, inside, D, LINES)
    tl.debug_barrier()  # other threads of this program wrote what these read
    mass = tl.zeros([SLOTS, COLS], dtype=ACC)
    first = 0
    while first < S:
        slots = first + tl.arange(0, SLOTS)
        mask = (slots < S)[:, None] & inside[None, :]
        mass += _read(table, slots, columns, D, 1, mask, ACC)
        first += SLOTS
    scale = tl.load(magnitude + columns, mask=inside, other=0.0).to(ACC)
    mass_j = tl.sum(mass, axis=0) + 0.0 * scale  # infinity * 0 is NaN: not a dead feature
    BITS: tl.constexpr = ACC.primitive_bitwidth
    SMALLEST: tl.constexpr = 2.2250738585072014e-308 if BITS == 64 else 1.17549435e-38
    dead = mass_j <= eps * scale + SMALLEST  # below that the reciprocal could overflow
    inverse = tl.where(dead, 0.0, 1.0 / tl.where(dead, 1.0, mass_j))

    line = sums + block.to(tl.int64) * (S + 2)
    squares = tl.zeros([SLOTS, COLS], dtype=ACC)
    first = 0
    while first < S:
        slots = first + tl.arange(0, SLOTS)
        mask = (slots < S)[:, None] & inside[None, :]
        P = _read(table, slots, columns, D, 1, mask, ACC) * inverse[None, :]
        squares += P * P
        tl.store(line + slots, tl.sum(P, axis=1), mask=slots < S)
        first += SLOTS
    square = tl.sum(squares, axis=0)
    tl.store(feature_coef + D + columns, inverse, mask=inside)
    tl.store(feature_coef + 2 * D + columns, square, mask=inside)

    impurity = 1.0 - square
    impurity = tl.where(impurity < 0, 0.0, impurity)
    impurity = tl.where(dead, 0.0, impurity)
    tl.store(line + S, tl.sum(impurity, axis=0))
    tl.store(line + S + 1, tl.sum(tl.where(dead, 0.0, 1.0).to(ACC), axis=0))


@triton.jit(do_not_specialize=["S", "parts", "gini_weight", "gini_rest", "kl_weight", "kl_rest"])
def class_terms_kernel(
    table, slope, feature_coef, sums, prior, absent, slot_coef, penalty, gini, kl, S, D, parts,
    gini_weight, gini_rest, kl_weight, kl_rest,
    SLOPE: tl.constexpr, ABSENT: tl.constexpr, REVERSE: tl.constexpr,
    PARTS: tl.constexpr, SLOTS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """A of every slot and the scalars from `sums` of feature_terms_kernel, and of COLS features
    1 / (L T), sum of A P, and what backward needs of the slope. Every program makes all A for
    itself, instead of a launch for them."""
    ACC: tl.constexpr = table.dtype.element_ty
    program = tl.program_id(0)
    columns, inside = _columns(program, D, COLS)
    width = S + 2

    features = tl.arange(0, 2)
    totals = tl.zeros([PARTS, 2], dtype=ACC)
    first = 0
    while first < parts:
        part = first + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & (features < 2)[None, :]
        totals += _read(sums + S, part, features, width, 1, mask, ACC)
        first += PARTS
    totals_of = tl.sum(totals, axis=0)
    impurities = tl.sum(tl.where(features == 0, totals_of, 0.0), axis=0)
    live = tl.sum(tl.where(features == 1, totals_of, 0.0), axis=0)
    live_or_one = tl.where(live == 0, 1.0, live)

    inverse = tl.load(feature_coef + D + columns, mask=inside, other=0.0).to(ACC)
    projection = tl.zeros([COLS], dtype=ACC)  # sums of A P, F, F P and A F
    slopes = tl.zeros([COLS], dtype=ACC)
    slope_shares = tl.zeros([COLS], dtype=ACC)
    slope_pulls = tl.zeros([COLS], dtype=ACC)
    divergence = tl.zeros([SLOTS], dtype=ACC)
    start = 0
    while start < S:
        slots = start + tl.arange(0, SLOTS)
        # Read before they are wanted, so that they are on their way meanwhile.
        here = (slots < S)[:, None] & inside[None, :]
        P = _read(table, slots, columns, D, 1, here, ACC) * inverse[None, :]
        if SLOPE:
            F = _read(slope, slots, columns, D, 1, here, ACC)
        q_parts = tl.zeros([PARTS, SLOTS], dtype=ACC)
        first = 0
        while first < parts:
            part = first + tl.arange(0, PARTS)
            mask = (part < parts)[:, None] & (slots < S)[None, :]
            q_parts += _read(sums, part, slots, width, 1, mask, ACC)
            first += PARTS
        q = tl.sum(q_parts, axis=0) / live_or_one
        pi = tl.load(prior + slots, mask=slots < S, other=0.0).to(ACC)
        if REVERSE:
            p, denominator = q, pi
        else:
            p, denominator = pi, q
        denominator = tl.where(denominator < 1e-8, 1e-8, denominator)
        # In float64, because the fast float32 logarithm has no correct digit for a ratio near 1.
        ratio = tl.where(p == 0, 1.0, p / denominator)
        logarithm = tl.log(ratio.to(tl.float64)).to(ACC)
        divergence += tl.where(p == 0, 0.0, p * logarithm)
        if REVERSE:
            A = tl.where(q == 0, 0.0, logarithm)
        else:
            A = tl.where(q < 1e-8, 0.0, -pi / denominator)
        if program == 0:
            tl.store(slot_coef + slots, A, mask=slots < S)
        projection += tl.sum(A[:, None] * P, axis=0)
        if SLOPE:
            slopes += tl.sum(F, axis=0)
            slope_shares += tl.sum(F * P, axis=0)
            slope_pulls += tl.sum(A[:, None] * F, axis=0)
        start += SLOTS

    # A may be NaN, which a dead feature has nothing to do with.
    dead = inverse == 0
    projection = tl.where(dead, 0.0, projection)
    squares = tl.load(feature_coef + 2 * D + columns, mask=inside, other=0.0).to(ACC)
    of_gini = tl.where(dead, 0.0, squares * slopes - slope_shares)
    of_kl = tl.where(dead, 0.0, slope_pulls - projection * slopes)
    tl.store(feature_coef + columns, inverse / live_or_one, mask=inside)
    tl.store(feature_coef + 3 * D + columns, projection, mask=inside)
    tl.store(feature_coef + 4 * D + columns, of_gini, mask=inside)
    tl.store(feature_coef + 5 * D + columns, of_kl, mask=inside)
    if program == 0:
        gini_value = impurities / live_or_one
        kl_value = tl.sum(divergence, axis=0)
        if ABSENT:
            kl_value += tl.load(absent).to(ACC)
        kl_value = tl.where(live == 0, 0.0, tl.where(kl_value < 0, 0.0, kl_value))
        tl.store(gini, gini_value)
        tl.store(kl, kl_value)
        gini_value *= _number(gini_weight, gini_rest, ACC)
        kl_value *= _number(kl_weight, kl_rest, ACC)
        tl.store(penalty, gini_value + kl_value)
