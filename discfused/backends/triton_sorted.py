"""Rows in the order of slots, by sorting: for batches too large to count through (triton_slots).

PyTorch's own ops on N elements, of fixed shapes, deterministic, and without a synchronisation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from discfused.backends.contract import Labels, Members


class Order(NamedTuple):
    """Members.extra: the order in which histogram walks the rows (see triton_slots)."""

    order: Tensor  # [N] int32
    span: Tensor  # [2, S] int32


def by_slot(members: Members) -> Members:
    """The order of rows whose slots are known."""
    slot, S = members.slot, members.share.shape[0]
    key, order = torch.sort(torch.where(slot < 0, S, slot), stable=True)
    slots = torch.arange(S, dtype=key.dtype, device=key.device)
    start = torch.searchsorted(key, slots)
    span = torch.stack((start, torch.searchsorted(key, slots, right=True) - start))
    return members._replace(extra=Order(order.int(), span.int()))


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
    total = row_weight.sum()
    share = torch.empty(slots, dtype=dtype, device=device)
    result = by_slot(Members(slot.int(), row_weight, total, slot_class, share))
    kernels.share_kernel[(slots,)](
        row_weight, *result.extra, total, share, slots, **kernels.BLOCKS[dtype]["share"]
    )
    return result
