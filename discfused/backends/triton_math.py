"""What all Triton kernels of the features share: the mathematics of one element, and loads.

`acc` is the accumulation type; every float is cast to it as soon as it is loaded (the interpreter
computes bfloat16 on bit patterns, and a GPU would round each step). Offsets are 64-bit: a row times
its stride exceeds 2^31 at 1M rows of 4096. Loops whose bounds are known at run time only are
`while` loops: old Triton's interpreter cannot run them as `for`. There are no atomics: each sum is
made in one fixed order, so the same input gives the same bits.
"""

import triton
import triton.language as tl

# ACT: place in contract.ACTIVATIONS. Comparisons are arranged so that NaN passes.


@triton.jit
def _log1p(u):
    """log(1 + u) for 0 <= u <= 1"""
    if u.dtype == tl.float64:
        w = 1.0 + u
        return tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
    # 2 atanh(u / (2 + u)): the GPU's fast logarithm loses all digits near 1
    z = u / (2.0 + u)
    s = z * z
    tail = s * (1.0 / 9 + s * (1.0 / 11 + s * (1.0 / 13 + s * (1.0 / 15))))
    return 2.0 * z * (1.0 + s * (1.0 / 3 + s * (1.0 / 5 + s * (1.0 / 7 + tail))))


@triton.jit
def _activate(z, ACT: tl.constexpr):
    """phi(z)"""
    if ACT == 0:
        return tl.where(z < 0, 0.0, z)
    elif ACT == 1:
        return tl.where(z < 0, -z, z)
    elif ACT == 2:
        return z * z
    else:
        decay = tl.exp(tl.where(z < 0, z, -z))  # exp(-|z|) cannot overflow
        if ACT == 3:
            return tl.where(z < 0, 0.0, z) + _log1p(decay)
        else:
            return tl.where(z < 0, decay, 1.0) / (1.0 + decay)


@triton.jit
def _pull_back(z, g, ACT: tl.constexpr):
    """phi'(z) * g"""
    if ACT == 0:
        return tl.where(z <= 0, 0.0, g)
    elif ACT == 1:
        return tl.where(z > 0, g, tl.where(z < 0, -g, z * g))
    elif ACT == 2:
        return 2.0 * z * g
    else:
        decay = tl.exp(tl.where(z < 0, z, -z))
        scale = 1.0 / (1.0 + decay)
        if ACT == 3:
            return tl.where(z < 0, decay, 1.0) * scale * g
        else:
            return decay * scale * scale * g


@triton.jit
def _size(x, ACT: tl.constexpr):
    """What magnitude adds up: of the same power of x as phi"""
    if ACT == 2:
        return x * x
    else:
        return tl.abs(x)


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
    columns = block.to(tl.int64) * COLS + tl.arange(0, COLS)
    return columns, columns < D
