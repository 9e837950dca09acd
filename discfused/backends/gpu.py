"""The common parts of the two GPU backends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from discfused._definitions import accumulation_dtype
from discfused.backends.bad_labels import bad_labels
from discfused.backends.contract import by_class, hard_slots


def is_soft(rows: Sequence[Tensor]) -> bool:
    return rows[0].is_floating_point()


def soft_rows(target: Tensor, sample_weight: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """m [N, C], and one tensor with: n [C], the sum of n [1], whether each row counts [N]."""
    m = target.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if sample_weight is not None:  # 0 times a weight of NaN would be NaN
        m = torch.where(m == 0, m, m * sample_weight.to(dtype)[:, None])
    n = m.sum(0)
    return [m, torch.cat((n, n.sum()[None], (m != 0).any(1).to(dtype)))]


class GpuBackend:
    """`rows` and the shapes of kept tensors. Subclasses sort the rows of hard labels."""

    @staticmethod
    def rows_numbers(N: int, S: int, weighted: bool) -> tuple[int, int]:
        """How many integers, and how many of `dtype`, the rows of hard labels are."""
        raise NotImplementedError

    def hard_rows(
        self,
        target: Tensor,
        sample_weight: Tensor | None,
        num_classes: int,
        ignore_index: int,
        dtype: torch.dtype,
        bad: Tensor,
    ) -> list[Tensor]:
        """The stage `rows`. Writes the number of labels out of range to `bad`, if there are any."""
        raise NotImplementedError

    def rows(
        self,
        target: Tensor,
        sample_weight: Tensor | None,
        num_classes: int,
        ignore_index: int,
        dtype: torch.dtype,
    ) -> list[Tensor]:
        if target.is_floating_point():
            return soft_rows(target, sample_weight, dtype)
        bad = bad_labels(target.device)
        bad.check()
        rows = self.hard_rows(target, sample_weight, num_classes, ignore_index, dtype, bad.flag)
        bad.check_now()
        return rows

    def empty_rows(
        self, target: Tensor, num_classes: int, dtype: torch.dtype, weighted: bool
    ) -> list[Tensor]:
        N, C = target.shape[0], num_classes
        if target.is_floating_point():
            return [target.new_empty((N, C), dtype=dtype), target.new_empty(N + C + 1, dtype=dtype)]
        S = hard_slots(N, C)
        integers, numbers = self.rows_numbers(N, S, weighted)
        return [
            target.new_empty(integers, dtype=torch.int64),
            target.new_empty(numbers, dtype=dtype),
        ]

    def empty_kept(
        self, features: Tensor, rows: Sequence[Tensor], num_classes: int
    ) -> list[Tensor]:
        """H [S, D], and one tensor with four numbers per column, then one per slot."""
        N, D = features.shape
        S = num_classes if is_soft(rows) else hard_slots(N, num_classes)
        dtype = accumulation_dtype(features.dtype)
        return [features.new_empty((S, D), dtype=dtype), features.new_empty(4 * D + S, dtype=dtype)]

    def sizes(self, rows: Sequence[Tensor], samples: int, num_classes: int) -> Tensor:
        index, weight = rows
        if is_soft(rows) or num_classes <= samples:  # a slot is a class
            return weight[:num_classes].clone()
        return by_class(weight[:samples], index[index.shape[0] - samples :], num_classes)
