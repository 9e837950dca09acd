"""The stage `rows` by sorting, for batches too large to count through (triton_rows).

PyTorch's own ops on N elements, of fixed shapes, deterministic, and without a synchronisation.
"""

import torch
from torch import Tensor

from discfused.backends.triton_runtime import kernels


def rows(
    target: Tensor,
    sample_weight: Tensor | None,
    num_classes: int,
    ignore_index: int,
    weight: Tensor,
    bad: Tensor,
) -> Tensor:
    """`index`, and `weight` filled in: see triton_rows."""
    N, C = target.shape[0], num_classes
    S = min(N, C)
    known = target != ignore_index
    valid = known & (target >= 0) & (target < C)
    w = valid.to(weight.dtype)
    if sample_weight is not None:
        w = torch.where(valid, sample_weight.to(w.dtype), 0)
    key, order = torch.sort(torch.where(w != 0, target, C), stable=True)
    queries = torch.arange(C + 1, device=target.device) if S == C else key
    first = torch.searchsorted(key, queries)
    count = torch.searchsorted(key, queries, right=True) - first
    if S == C:
        slot, start = key, first
        slot_class = torch.where(count > 0, queries, -1)[:C]
    else:
        place, counts = torch.arange(N, device=target.device), key < C
        slot = torch.where(counts, first, S)
        opens = counts & (first == place)
        counting = counts.sum().view(1)
        start = torch.cat((place, counting))
        count = torch.cat((torch.where(opens, count, 0), N - counting))
        slot_class = torch.where(opens, key, -1)
    index = torch.cat((order, slot, start, count, slot_class))
    k = kernels()
    k.sizes_kernel[(S + 1,)](
        w, w.sum(), (known & ~valid).sum(), index, weight, bad, N, S,
        **k.BLOCKS[weight.dtype]["sizes"],
    )  # fmt: skip
    return index
