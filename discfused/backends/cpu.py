"""The CPU kernels of the compiled library. csrc/cpu registers the operators of the contract."""

from collections.abc import Sequence

import torch
from torch import Tensor

from discfused._definitions import accumulation_dtype
from discfused.backends import _library
from discfused.backends.contract import by_class, hard_slots

PADDING = 16  # of the rows of the table: kPadding in csrc/cpu/kernels.h


class CpuBackend:
    name = "cpu"
    device_type = "cpu"

    def unavailable(self) -> str | None:
        try:
            _library.load()
        except _library.LibraryUnavailable as error:
            return str(error)
        return None

    # struct Rows and struct Kept in csrc/cpu define the layouts.

    def empty_rows(
        self, target: Tensor, num_classes: int, dtype: torch.dtype, weighted: bool
    ) -> Sequence[Tensor]:
        N = target.shape[0]
        if target.is_floating_point():
            weight = target.new_empty((N, num_classes), dtype=dtype)
            return target.new_empty(0, dtype=torch.int64), weight
        S = hard_slots(N, num_classes)
        index = target.new_empty(N + 2 * S + 1, dtype=torch.int64)
        return index, target.new_empty(N + S, dtype=dtype)

    def empty_kept(
        self, features: Tensor, rows: Sequence[Tensor], num_classes: int
    ) -> Sequence[Tensor]:
        N, D = features.shape
        soft = rows[1].dim() == 2
        S = num_classes if soft else hard_slots(N, num_classes)
        width = (D + PADDING - 1) // PADDING * PADDING
        dtype = accumulation_dtype(features.dtype)
        return (features.new_empty((S + 4) * width + S + 1, dtype=dtype),)

    def sizes(self, rows: Sequence[Tensor], samples: int, num_classes: int) -> Tensor:
        index, weight = rows
        if weight.dim() == 2:
            return weight.sum(0)
        S = hard_slots(samples, num_classes)
        return by_class(weight[samples:], index[samples + S + 1 :], num_classes)
