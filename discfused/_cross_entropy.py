"""Cross-entropy itself, PyTorch's, with sample weights; and which rows count in it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from discfused._definitions import accumulation_dtype


def in_range(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels with those out of range ignored: on a GPU, cross_entropy would leave the process
    without a usable device. The backend of the terms reports them."""
    return torch.where(target == target.clamp(0, num_classes - 1), target, ignore_index)


def count(
    target: Tensor, sample_weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """The number of rows that are not ignored, each counted sample_weight times."""
    if target.is_floating_point():
        counts = target.new_ones(target.shape[:1], dtype=torch.bool)
    else:
        counts = target != ignore_index
    return (counts if sample_weight is None else counts * sample_weight.to(dtype)).sum(dtype=dtype)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    sample_weight: Tensor | None,
) -> Tensor:
    dtype = accumulation_dtype(logits.dtype)
    if logits.dtype != dtype:  # .to(), even to the same dtype, costs as much as a small kernel
        logits = logits.to(dtype)
    if weight is not None:
        weight = weight.to(dtype)
    if target.is_floating_point():
        target = target.to(dtype)
    if sample_weight is None:
        return F.cross_entropy(
            logits, target, weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing,
        )  # fmt: skip
    ce = F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction="none",
        label_smoothing=label_smoothing,
    )  # fmt: skip
    # A row of weight 0 does not count, even if its loss is infinite.
    sample_weight = sample_weight.to(dtype)
    ce = torch.where(sample_weight == 0, 0, ce * sample_weight)
    if reduction == "none":
        return ce
    if reduction == "sum":
        return ce.sum()
    return ce.sum() / _weighted_count(target, weight, ignore_index, sample_weight)


def _weighted_count(
    target: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor
) -> Tensor:
    """The divisor of PyTorch's "mean", with every row counted sample_weight times."""
    if target.is_floating_point():
        return sample_weight.sum()
    counts = target != ignore_index
    if weight is not None:
        sample_weight = sample_weight * weight[torch.where(counts, target, 0)]
    return torch.where(counts, sample_weight, 0).sum()
