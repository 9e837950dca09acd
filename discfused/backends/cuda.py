"""The hand-written CUDA kernels: csrc/cuda registers all operators of the contract but `rows`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from discfused._definitions import accumulation_dtype
from discfused.backends import _library
from discfused.backends.bad_labels import bad_labels
from discfused.backends.contract import hard_slots
from discfused.backends.soft_rows import soft_rows


class CudaBackend:
    name = "cuda"
    device_type = "cuda"

    def unavailable(self) -> str | None:
        return _library.cuda_missing()

    # csrc/cuda/tensors.h says what is where.

    def empty_rows(self, target: Tensor, num_classes: int, dtype: torch.dtype) -> Sequence[Tensor]:
        N, C = target.shape[0], num_classes
        if target.is_floating_point():
            return target.new_empty((N, C), dtype=dtype), target.new_empty(N + C + 1, dtype=dtype)
        S = hard_slots(N, C)
        index = target.new_empty(2 * N + 2 * S + 2, dtype=torch.int64)
        return index, target.new_empty(N + S + 1, dtype=dtype)

    def empty_kept(
        self, features: Tensor, rows: Sequence[Tensor], num_classes: int
    ) -> Sequence[Tensor]:
        N, D = features.shape
        S = num_classes if rows[0].is_floating_point() else hard_slots(N, num_classes)
        dtype = accumulation_dtype(features.dtype)
        return features.new_empty((S, D), dtype=dtype), features.new_empty(4 * D + S, dtype=dtype)

    def rows(
        self,
        target: Tensor,
        sample_weight: Tensor | None,
        num_classes: int,
        ignore_index: int,
        dtype: torch.dtype,
    ) -> Sequence[Tensor]:
        if target.is_floating_point():
            return soft_rows(target, sample_weight, dtype)
        bad = bad_labels(target.device)
        bad.check()
        rows = torch.ops.discfused.cuda_rows_flagged(
            target, sample_weight, num_classes, ignore_index, dtype, bad.flag
        )
        bad.check_now()
        return rows
