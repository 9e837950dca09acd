"""RunningDiscLoss: the terms of a running class histogram."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from discfused import _inputs
from discfused._class_sums import ClassSums
from discfused._modes import in_transform
from discfused.modules import FusedDiscLoss

# As a fraction of the largest size, and as a size. Numbers that decay until they are subnormal stay
# at a few of their last bits, whose quotient is no mean.
FORGOTTEN = 2.0**-64


class RunningDiscLoss(FusedDiscLoss):
    """FusedDiscLoss of the class sums  S_t = S(batch t) + momentum * S_(t-1)  (ours)

    For batches with few samples per class, and for micro-batches without the second pass that
    `FusedDiscLoss.class_sums` needs. The result is biased: the earlier sums are constants, computed
    from earlier states of the network. The gradient of the terms is scaled as for one of
    P = 1 + momentum + momentum^2 + ... parts, so it is about as large as that of FusedDiscLoss.
    Cross-entropy and, for "sum", the number of rows are those of the batch. The criterion keeps
    [C, D] numbers per layer.

    A class whose size in momentum * S_(t-1) is below 2^-64 of the largest size in S_t, or below
    2^-64, is forgotten: its earlier size and its rows of the earlier tables become 0.

    Only calls in training mode with gradients change the sums, and only if they stay finite: after
    an overflow in float16 the loss of that batch is NaN, but not the next one. The sums are in the
    state_dict, so a resumed run continues with them, if each process loads its own
    (torch.distributed.checkpoint loads only what is there already, after a first call). They are
    not buffers, so DistributedDataParallel does not broadcast them. With process_group the S_t / P
    of all processes are added. A call inside torch.utils.checkpoint raises an error in backward.

    Args:
        momentum: in [0, 1); 0 is FusedDiscLoss.
        The others: as in FusedDiscLoss.

    Attributes:
        sums: the ClassSums so far; None before the first call. Set it to None to start again.
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
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "RunningDiscLoss ran during backward, as in torch.utils.checkpoint, whose "
                "recomputation would add the batch once more: checkpoint the model alone"
            )
        own = self.class_sums(logits, target, features, sample_weight=sample_weight)
        if self.sums is None:
            earlier = own._of([torch.zeros_like(tensor) for tensor in own._tensors()])
        else:  # a checkpoint may have been loaded to another device
            earlier = own._of([tensor.to(own.sizes.device) for tensor in self.sums._tensors()])
        sums = _with_decayed(own, earlier * self.momentum)
        if not in_transform():  # its tensors must not outlive it
            finite = torch.stack([tensor.isfinite().all() for tensor in sums._tensors()]).all()
            pairs = zip(sums._tensors(), earlier._tensors(), strict=True)
            self.sums = sums._of([torch.where(finite, new, old) for new, old in pairs])
        # S_t / P has the terms of S_t, but a gradient P times as large, because the rows of this
        # call are not divided. The counts stay those of this call.
        parts = sums.counts[2]
        tables = tuple(table / parts for table in sums.tables)
        return ClassSums(tables, sums.sizes / parts, own.counts)

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.sums is None else self.sums.state_dict()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.sums = ClassSums(**state) if state else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningDiscLoss":
        if self.sums is not None:  # .to() and similar methods; but float16 would overflow
            tensors = self.sums._tensors()
            self.sums = self.sums._of([fn(tensor).to(tensor.dtype) for tensor in tensors])
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, {super().extra_repr()}"


def _with_decayed(own: ClassSums, earlier: ClassSums) -> ClassSums:
    """own + earlier, without the earlier sums of classes that are forgotten."""
    sums = own + earlier
    forgotten = earlier.sizes < (sums.sizes.amax() * FORGOTTEN).clamp(min=FORGOTTEN)
    tables = zip(sums.tables, own.tables, strict=True)
    return ClassSums(
        tuple(torch.where(forgotten[:, None], batch, both) for both, batch in tables),
        torch.where(forgotten, own.sizes, sums.sizes),
        sums.counts,
    )
