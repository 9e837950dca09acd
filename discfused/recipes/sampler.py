"""The samples of every batch of a training run, computed in advance.

A batch is a function of the seed and the step, without state. So a run can continue from any step
as if it had never stopped, with any number of worker processes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


class Batches:
    """The `batch_sampler` of a DataLoader: for each step a list of (epoch, index).

    Under DistributedDataParallel the batches of the processes in one step do not overlap, and
    `batch_size` is per process.

    Args:
        labels: [N] class of every sample.
        batch_size: per process.
        samples_per_class: None for shuffled batches. K for batches of P = batch_size / K classes
            with K samples each, for better class histograms: with 100 classes and a shuffled batch
            of 128, most classes have one sample or none. Within an epoch, each class, and each
            sample of a class, comes again only after all others came equally often. A class with
            fewer than K samples repeats them.
        seed: seed of every draw.
        rank, world_size: of this process.
        start, stop: first step, and the step after the last.

    Raises:
        ValueError: there are fewer samples than one step needs; samples_per_class does not divide
            batch_size, or needs more classes per batch than there are.
    """

    def __init__(
        self,
        labels: Tensor,
        batch_size: int,
        samples_per_class: int | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
    ):
        self.steps_per_epoch = len(labels) // (batch_size * world_size)
        if not self.steps_per_epoch:
            raise ValueError(
                f"batch_size is {batch_size} in each of {world_size} processes, expected at most "
                f"the {len(labels)} training samples in all"
            )
        self.batch_size, self.samples_per_class = batch_size, samples_per_class
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.start, self.stop = start, self.steps_per_epoch if stop is None else stop
        self.samples = len(labels)
        if samples_per_class is not None:
            present = labels.unique()
            self.members = [(labels == c).nonzero().squeeze(1) for c in present]
            self.classes, rest = divmod(batch_size, samples_per_class)
            if rest:
                raise ValueError(f"samples_per_class is {samples_per_class}, expected a divisor "
                                 f"of batch_size, which is {batch_size}")  # fmt: skip
            if self.classes > len(present):
                raise ValueError(
                    f"samples_per_class is {samples_per_class}, so batches of "
                    f"{batch_size} have {self.classes} classes, but there are {len(present)}: "
                    "expected more samples of each class, or smaller batches"
                )

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, plan = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                plan = self.plan(epoch)
            batch = plan[step % self.steps_per_epoch, self.rank]
            yield [(epoch, index) for index in batch.tolist()]

    def plan(self, epoch: int) -> Tensor:
        """[steps_per_epoch, world_size, batch_size] indices, equal in every process."""
        drawn_by = (self.seed * 1_000_003 + epoch) % 2**63
        generator = torch.Generator().manual_seed(drawn_by)
        shape = self.steps_per_epoch, self.world_size, self.batch_size
        count = shape[0] * shape[1]
        if self.samples_per_class is None:
            order = torch.randperm(self.samples, generator=generator)
            return order[: count * self.batch_size].view(shape)
        class_turns = torch.zeros(len(self.members))
        sample_turns = [torch.zeros(len(members)) for members in self.members]
        batches = []
        for _ in range(count):
            for c in _least_used(class_turns, self.classes, generator).tolist():
                chosen = _least_used(sample_turns[c], self.samples_per_class, generator)
                batches.append(self.members[c][chosen])
        return torch.cat(batches).view(shape)


def _least_used(turns: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` positions with the fewest turns, ties at random. Increments their turns.

    If there are fewer than `count`, they repeat.
    """
    order = (turns + torch.rand(len(turns), generator=generator)).argsort()
    chosen = order.repeat(-(-count // len(order)))[:count]
    turns += torch.bincount(chosen, minlength=len(turns))
    return chosen
