"""What the two backends of GPUs have in common: soft labels, and what `terms` keeps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from discfused._definitions import accumulation_dtype
from discfused.backends.contract import hard_slots


def is_soft(rows: Sequence[Tensor]) -> bool:
    return rows[0].is_floating_point()


def soft_rows(target: Tensor, sample_weight: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """m [N, C]; and, one after the other, whether a row counts [N], n [C], and the sum of n [1]."""
    m = target.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if sample_weight is not None:  # 0 times a weight that is NaN would be NaN
        m = torch.where(m == 0, m, m * sample_weight.to(dtype)[:, None])
    n = m.sum(0)
    return [m, torch.cat(((m != 0).any(1).to(dtype), n, n.sum()[None]))]


def empty_soft_rows(target: Tensor, dtype: torch.dtype) -> list[Tensor]:
    N, C = target.shape
    return [target.new_empty((N, C), dtype=dtype), target.new_empty(N + C + 1, dtype=dtype)]


def empty_kept(features: Tensor, rows: Sequence[Tensor], num_classes: int) -> list[Tensor]:
    """H [S, D], and four numbers of every column before one of every slot."""
    N, D = features.shape
    S = num_classes if is_soft(rows) else hard_slots(N, num_classes)
    dtype = accumulation_dtype(features.dtype)
    return [features.new_empty((S, D), dtype=dtype), features.new_empty(4 * D + S, dtype=dtype)]
