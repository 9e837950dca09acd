"""Sums over the samples of each class. The terms of a batch depend on the rows only through them.

The terms are not means over samples, so the mean of the terms of two batches is not the term of
both together. The class sums do add up, over the micro-batches of one process and over processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from discfused._modes import in_forward_mode, in_transform


@dataclass(frozen=True)
class ClassSums:
    """tables[l]_cj = sum_i m_ic phi(x_ij) of layer l, and sizes_c = sum_i m_ic

    `a + b` gives the class sums of both batches together, `sum(parts)` those of all parts. They are
    constants: a loss with `class_sums` differentiates only the features of its own part.

    Attributes:
        tables: [C, D] of each layer, float32 (float64 for float64 features).
        sizes: [C], the same dtype.
        counts: [3]: number of rows that count, divisor of their mean cross-entropy, number of
            parts.
    """

    tables: tuple[Tensor, ...]
    sizes: Tensor
    counts: Tensor

    def __add__(self, other: ClassSums) -> ClassSums:
        if not isinstance(other, ClassSums):
            return NotImplemented
        if self._shapes() != other._shapes():
            raise ValueError(
                f"class sums of shapes {other._shapes()} cannot be added to those of shapes "
                f"{self._shapes()}: both must be of the same layers and classes"
            )
        own, others = self._tensors(), other._tensors()
        return self._of([a + b for a, b in zip(own, others, strict=True)])

    def __radd__(self, other: object) -> ClassSums:
        return self if other == 0 else NotImplemented  # sum() starts with 0

    def __mul__(self, factor: float) -> ClassSums:
        return self._of([factor * tensor for tensor in self._tensors()])

    def detach(self) -> ClassSums:
        return self._of([tensor.detach() for tensor in self._tensors()])

    def state_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def histograms(self) -> list[Tensor]:
        """H of each layer."""
        n = torch.where(self.sizes == 0, 1, self.sizes)[:, None]
        return [table / n for table in self.tables]

    def _tensors(self) -> list[Tensor]:
        return [*self.tables, self.sizes, self.counts]

    def _of(self, tensors: list[Tensor]) -> ClassSums:
        *tables, sizes, counts = tensors
        return ClassSums(tuple(tables), sizes, counts)

    def _shapes(self) -> list[tuple[int, ...]]:
        return [tuple(tensor.shape) for tensor in self._tensors()]


def whole_batch(
    own: ClassSums, given: ClassSums | None, group: dist.ProcessGroup | None
) -> Callable[[], ClassSums]:
    """Starts to add up the batch; the returned function waits for the result.

    `given` are the sums of all micro-batches of this process, including `own`. The result has their
    values, and the gradient of `own` times the number of parts. The mean over the parts, which
    DistributedDataParallel or loss / accumulation_steps takes, is then the gradient of the whole.
    """
    if not (given is None or isinstance(given, ClassSums)):
        raise TypeError(
            f"class_sums is a {type(given).__name__}, expected ClassSums: the sum of what "
            "discfused.class_sums returns for the parts of the batch"
        )
    if given is not None and given._shapes() != own._shapes():
        raise ValueError(
            f"class_sums have shapes {given._shapes()}, but these features have class sums of "
            f"shapes {own._shapes()}: both must be of the same layers and classes"
        )
    whole = (own if given is None else given).detach()
    in_flight = None if group is None else _sum_over_processes(whole, group)

    def finished() -> ClassSums:
        batch = whole if in_flight is None else in_flight()
        parts = batch.counts[2]
        # Forward mode and transforms differentiate tensors that do not require a gradient.
        always = in_transform() or in_forward_mode()
        tables = [
            total + parts * (table - table.detach()) if table.requires_grad or always else total
            for total, table in zip(batch.tables, own.tables, strict=True)
        ]
        return ClassSums(tuple(tables), batch.sizes, batch.counts)

    return finished


def _sum_over_processes(sums: ClassSums, group: dist.ProcessGroup) -> Callable[[], ClassSums]:
    """One asynchronous collective for all sums; the returned function waits for it."""
    tensors = sums._tensors()
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    work = None
    if torch.compiler.is_compiling():  # the compiler accepts only this form, and overlaps it
        dist.all_reduce(flat, group=group)
    else:
        work = dist.all_reduce(flat, group=group, async_op=True)

    def finished() -> ClassSums:
        if work is not None:
            work.wait()
        parts = flat.split([tensor.numel() for tensor in tensors])
        return sums._of([p.view(t.shape) for p, t in zip(parts, tensors, strict=True)])

    return finished


def resolve_group(process_group: object) -> dist.ProcessGroup | None:
    """The group whose batches are added, or None: without a group, in a group of one process, or
    without gradients, because not all processes may take part in an evaluation."""
    if process_group is None:
        return None
    if process_group == "world":
        if not (dist.is_available() and dist.is_initialized()):
            return None
        process_group = dist.group.WORLD
    elif not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        error = ValueError if isinstance(process_group, str) else TypeError
        raise error(
            f"process_group is {process_group!r}, expected None, 'world' or a "
            "torch.distributed.ProcessGroup (of a DeviceMesh: mesh.get_group())"
        )
    if not torch.is_grad_enabled() or dist.get_world_size(process_group) == 1:
        return None
    return process_group
