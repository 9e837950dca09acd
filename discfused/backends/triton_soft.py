"""Soft labels (see soft.py) with a matrix product in true float32 of Triton's."""

from functools import partial

import torch
from torch import Tensor

from discfused.backends import soft
from discfused.backends.contract import Histogram, Members, Pull


def _matmul(kernels, a: Tensor, b: Tensor) -> Tensor:
    """[M, K] @ [K, D]"""
    if a.dtype == torch.float64:  # has no faster and less exact form
        return a @ b
    blocks = kernels.BLOCKS[a.dtype]["matmul"]
    b = b.contiguous()
    (M, K), D = a.shape, b.shape[1]
    out = a.new_empty((M, D))
    grid = (-(-M // blocks["ROWS"]) * -(-D // blocks["COLS"]),)
    kernels.matmul_kernel[grid](a, *a.stride(), b, out, M, K, D, **blocks)
    return out


def histogram(kernels, features: Tensor, members: Members, *options) -> Histogram:
    return soft.histogram(partial(_matmul, kernels), features, members, *options)


def row_gradient(kernels, m: Tensor, table: Tensor, pull: Pull | None) -> Tensor:
    return soft.row_gradient(partial(_matmul, kernels), m, table, pull)
