"""The stage `rows` of soft labels on GPUs: a few PyTorch operators."""

import torch
from torch import Tensor


def soft_rows(target: Tensor, sample_weight: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """m [N, C]; and, one after the other, whether a row counts [N], n [C], and the sum of n [1]."""
    m = target.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if sample_weight is not None:  # 0 times a weight that is NaN would be NaN
        m = torch.where(m == 0, m, m * sample_weight.to(dtype)[:, None])
    n = m.sum(0)
    return [m, torch.cat(((m != 0).any(1).to(dtype), n, n.sum()[None]))]
