"""PyTorch's cross-entropy with sample weights, and the number of rows that count in it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from discfused._definitions import accumulation_dtype


def in_range(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Replaces labels out of range by ignore_index. On a GPU they would make F.cross_entropy fail
    with a device-side assertion, which ends all use of the device. The backend of the terms reports
    them."""
    return torch.where(target == target.clamp(0, num_classes - 1), target, ignore_index)


def counted(
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    sample_weight: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The sum of the sample weights of the rows that are not ignored. With class weights it is the
    divisor of PyTorch's "mean"."""
    if target.is_floating_point():
        valid, weight = target.new_ones(target.shape[:1], dtype=torch.bool), None
    else:
        valid = target != ignore_index
    rows = valid.to(dtype)
    if sample_weight is not None:
        rows = torch.where(valid, sample_weight.to(dtype), 0)
    if weight is not None:
        rows = torch.where(valid, rows * weight.to(dtype)[torch.where(valid, target, 0)], 0)
    return rows.sum()


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
    if logits.dtype != dtype:  # .to() to the same dtype takes as long as a small kernel
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
    # A row of weight 0 does not count, even with an infinite loss.
    sample_weight = sample_weight.to(dtype)
    ce = torch.where(sample_weight == 0, 0, ce * sample_weight)
    if reduction == "none":
        return ce
    if reduction == "sum":
        return ce.sum()
    return ce.sum() / counted(target, weight, ignore_index, sample_weight, dtype)
