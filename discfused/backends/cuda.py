"""The CUDA C++ kernels. csrc/cuda registers all operators of the contract except `rows`."""

import torch
from torch import Tensor

from discfused.backends import _library
from discfused.backends.gpu import GpuBackend


class CudaBackend(GpuBackend):
    name = "cuda"
    device_type = "cuda"

    def unavailable(self) -> str | None:
        return _library.cuda_missing()

    @staticmethod
    def rows_numbers(N: int, S: int, weighted: bool) -> tuple[int, int]:
        return 2 * N + 2 * S + 2, S + 1 + N  # csrc/cuda/tensors.h defines the layout

    def hard_rows(
        self,
        target: Tensor,
        sample_weight: Tensor | None,
        num_classes: int,
        ignore_index: int,
        dtype: torch.dtype,
        bad: Tensor,
    ) -> list[Tensor]:
        rows: list[Tensor] = torch.ops.discfused.cuda_rows_flagged(
            target, sample_weight, num_classes, ignore_index, dtype, bad
        )
        return rows
