"""Rows in the order of slots, by sorting: for batches too large to count through (triton_slots).

PyTorch's own ops on N elements, of fixed shapes, deterministic, and without a synchronisation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from discfused.backends.contract import Labels, Members
from discfused.reference import ratio


class Order(NamedTuple):
    """Members.extra: what histogram wants to know beside (see triton_slots)."""

    order: Tensor  # [2, N] int32
    span: Tensor  # [2, S] int32
    moments: Tensor | None = None  # [parts, 2, D] acc, where the rows do not fit into registers


def _by_slot(slot: Tensor, S: int) -> Order:
    """The order of rows whose slots are known."""
    key, order = torch.sort(torch.where(slot < 0, S, slot), stable=True)
    slots = torch.arange(S, dtype=key.dtype, device=key.device)
    start = torch.searchsorted(key, slots)
    span = torch.stack((start, torch.searchsorted(key, slots, right=True) - start))
    return Order(torch.stack((order, torch.where(key < S, key, -1))).int(), span.int())


def members(kernels, labels: Labels, slots: int, dtype: torch.dtype, bad: Tensor) -> Members:
    """The contract's stage; `bad` as in triton_slots."""
    target, weight, sample_weight, C, ignore_index = labels
    N, device = target.shape[0], target.device
    known = target != ignore_index
    valid = known & (target >= 0) & (target < C)
    kernels.report_kernel[(1,)]((known & ~valid).sum(), bad)
    row_weight = valid.to(dtype)
    if weight is not None:
        row_weight = torch.where(valid, weight[torch.where(valid, target, 0)], 0)
    if sample_weight is not None:
        row_weight = torch.where(row_weight == 0, 0, row_weight * sample_weight)
    counts = row_weight != 0
    if slots == C:
        slot_class = torch.arange(C, device=device)
        slot = torch.where(counts, target, -1)
    else:
        # The slot of a class is the number of rows before it in the order, as in triton_slots.
        key = torch.where(counts, target, C)
        sorted_key, _ = torch.sort(key, stable=True)
        slot = torch.where(counts, torch.searchsorted(sorted_key, key), -1)
        opens = torch.searchsorted(sorted_key, sorted_key) == torch.arange(N, device=device)
        slot_class = torch.where(opens & (sorted_key < C), sorted_key, -1)
    total, order = row_weight.sum(), _by_slot(slot, slots)
    if sample_weight is None:  # the rows of a slot weigh the same
        first = order.order[0, order.span[0].clamp(max=N - 1)]
        share = order.span[1] * torch.where(order.span[1] > 0, row_weight[first], 0)
        share = ratio(share, total)
    else:
        share = torch.empty(slots, dtype=dtype, device=device)
        kernels.share_kernel[(slots,)](
            row_weight, *order[:2], total, share, slots, **kernels.BLOCKS[dtype]["share"]
        )
    return Members(slot.int(), row_weight, total, slot_class, share, extra=order)
