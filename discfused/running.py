"""RunningDiscLoss: the terms of a running class histogram."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from discfused import _inputs
from discfused._class_sums import ClassSums
from discfused.modules import FusedDiscLoss


class RunningDiscLoss(FusedDiscLoss):
    """FusedDiscLoss of the class sums  S_t = S(batch t) + momentum * S_(t-1)  (ours)

    For batches with few samples of a class, and for micro-batches where a second pass over them is
    too dear (`FusedDiscLoss.class_sums` is exact and needs one). Biased: the earlier sums are
    constants, of features that the network no longer computes. The gradient is scaled as that of
    one of 1 + momentum + momentum^2 + ... parts, so its size is that of FusedDiscLoss;
    cross-entropy is that of the batch. It keeps [C, D] numbers for each layer.

    The sums grow by calls in training mode with gradients alone. They are in the state_dict, so
    that a run resumes where it stopped, and are no buffers: DistributedDataParallel leaves those
    of each process alone. With process_group the running sums of its processes are put together.

    Args:
        momentum: in [0, 1); 0 is FusedDiscLoss.
        The others: as in FusedDiscLoss.

    Attributes:
        sums: the ClassSums so far; None before the first call. Set it to None to begin anew.
    """

    def __init__(self, *, momentum: float = 0.9, **options: Any):
        super().__init__(**options)
        self.momentum = _inputs.non_negative("momentum", momentum)
        if self.momentum >= 1:
            raise ValueError(f"momentum is {momentum}, expected a number in [0, 1)")
        self.sums: ClassSums | None = None

    def _with_earlier(
        self,
        logits: Tensor,
        target: Any,
        features: Tensor | Sequence[Tensor] | None,
        sample_weight: Tensor | None,
    ) -> ClassSums | None:
        if features is None or not (self.training and torch.is_grad_enabled()):
            return None
        sums = own = self.class_sums(logits, target, features, sample_weight=sample_weight)
        if self.sums is not None:
            sums = own + self.sums * self.momentum
            # Cross-entropy is the batch's own, whatever the sizes of the others.
            sums = ClassSums(sums.tables, sums.sizes, own.counts * sums.counts[2])
        self.sums = sums
        return sums

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.sums is None else self.sums.state_dict()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.sums = ClassSums(**state) if state else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningDiscLoss":
        if self.sums is not None:  # .to() and its kin
            self.sums = self.sums._of([fn(tensor) for tensor in self.sums._tensors()])
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, {super().extra_repr()}"
