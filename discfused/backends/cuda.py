"""The hand-written CUDA kernels: csrc/cuda registers all operators of the contract but `rows`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from discfused.backends import _library, gpu
from discfused.backends.bad_labels import bad_labels
from discfused.backends.contract import hard_slots


class CudaBackend:
    name = "cuda"
    device_type = "cuda"

    def unavailable(self) -> str | None:
        return _library.cuda_missing()

    # csrc/cuda/tensors.h says what is where.

    def empty_rows(self, target: Tensor, num_classes: int, dtype: torch.dtype) -> Sequence[Tensor]:
        if target.is_floating_point():
            return gpu.empty_soft_rows(target, dtype)
        N = target.shape[0]
        S = hard_slots(N, num_classes)
        index = target.new_empty(2 * N + 2 * S + 2, dtype=torch.int64)
        return index, target.new_empty(N + S + 1, dtype=dtype)

    def empty_kept(
        self, features: Tensor, rows: Sequence[Tensor], num_classes: int
    ) -> Sequence[Tensor]:
        return gpu.empty_kept(features, rows, num_classes)

    def rows(
        self,
        target: Tensor,
        sample_weight: Tensor | None,
        num_classes: int,
        ignore_index: int,
        dtype: torch.dtype,
    ) -> Sequence[Tensor]:
        if target.is_floating_point():
            return gpu.soft_rows(target, sample_weight, dtype)
        bad = bad_labels(target.device)
        bad.check()
        rows = torch.ops.discfused.cuda_rows_flagged(
            target, sample_weight, num_classes, ignore_index, dtype, bad.flag
        )
        bad.check_now()
        return rows
