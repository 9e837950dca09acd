"""What all Triton kernels of the features share: the mathematics of one element, and loads.

ACC is the accumulation type; every float is cast to it as soon as it is loaded (the interpreter
computes bfloat16 on bit patterns, and a GPU would round each step). Offsets are 64-bit: a row times
its stride exceeds 2^31 at 1M rows of 4096. Triton 3.2, of PyTorch 2.6, interprets neither a
`for` loop whose bounds are known at run time only nor the negation of a comparison. There are no
atomics: each sum is made in one fixed order, so the same input gives the same bits.
"""

import triton
import triton.language as tl

# ACT and IMPURITY: places in ACTIVATIONS and IMPURITIES. NaN passes through all of these, except
# for x in _pull_back: the g of the terms is NaN where x is.


@triton.jit
def _activate(x, ACT: tl.constexpr):
    """phi(x)"""
    if ACT == 0:
        return tl.abs(x)
    else:
        # Not 0: -infinity must not be lost.
        return tl.maximum(x, 0.0 * x, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _pull_back(x, g, ACT: tl.constexpr):
    """phi'(x) * g"""
    if ACT == 0:
        return tl.where(x > 0, g, tl.where(x < 0, -g, 0.0 * g))
    else:
        return tl.where(x > 0, g, 0.0 * g)


@triton.jit
def _divide(a, b):
    """a / b, correctly rounded, and a where b is 0: the mean of nothing"""
    b = tl.where(b == 0, 1.0, b)
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)  # a / b of float32 is an approximation on a GPU


@triton.jit
def _log(x):
    """In float64: the GPU's fast float32 logarithm has no correct digit near 1."""
    return tl.log(x.to(tl.float64)).to(x.dtype)


@triton.jit
def _product(left, right, sums):
    """sums + left @ right, exactly in their own type: no TF32, whatever PyTorch's flags say"""
    if sums.dtype == tl.float64:  # which tl.dot of older Tritons does not take
        return sums + tl.sum(left[:, :, None] * right[None, :, :], axis=1)
    else:
        return tl.dot(left, right, sums, input_precision="ieee")


@triton.jit
def _read(x, rows, columns, row_stride, column_stride, mask, ACC: tl.constexpr):
    offset = rows.to(tl.int64)[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(x + offset, mask=mask, other=0.0).to(ACC)


@triton.jit
def _number(head, rest, ACC: tl.constexpr):
    """A number of the host, which Triton passes as float32: what rounding lost comes second."""
    return tl.full([], head, ACC) + tl.full([], rest, ACC)


@triton.jit
def _columns(block, D, COLS: tl.constexpr):
    columns = (block * COLS + tl.arange(0, COLS)).to(tl.int64)
    return columns, columns < D


@triton.jit
def _sum_lines(x, first, end, columns, inside, D, LINES: tl.constexpr, ACC: tl.constexpr):
    """The sum of lines `first` to `end` of x [., D]"""
    sums = tl.zeros([LINES, columns.shape[0]], dtype=ACC)
    lines = first + tl.arange(0, LINES)
    first = first + tl.full([], 0, tl.int32)  # a literal cannot change
    # The next lines are on their way while these are added: else the compiler saves registers, and
    # each load waits for the one before.
    tile = _read(x, lines, columns, D, 1, (lines < end)[:, None] & inside[None, :], ACC)
    while first < end:
        sums += tile
        first += LINES
        lines += LINES
        tile = _read(x, lines, columns, D, 1, (lines < end)[:, None] & inside[None, :], ACC)
    return tl.sum(sums, axis=0)
