"""Which samples make up every batch of a training run, known in advance.

A batch is a function of the seed and of its step: nothing remembers where it was, so a run goes on
from any step as if it had never stopped, with any number of worker processes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


class Batches:
    """One batch a step, each a list of (epoch, index): what a DataLoader takes as `batch_sampler`.

    Under DistributedDataParallel every process gets other samples of the epoch: the batches of one
    step do not overlap, and `batch_size` is that of each process.

    Args:
        labels: [N] class of every sample.
        batch_size: of each process.
        samples_per_class: None for batches of samples drawn without looking at the class. K for
            batches of P = batch_size / K classes with K samples each, which give each class
            histogram something to count: with 100 classes and a shuffled batch of 128, most classes
            have one sample or none. Classes, and the samples of a class, take turns: none comes
            again before all the others came as often, within an epoch. A class of fewer than K
            samples repeats them.
        seed: decides every draw.
        rank, world_size: of this process.
        start, stop: steps.

    Raises:
        ValueError: the samples do not fill one batch of every process; or samples_per_class does
            not divide batch_size, or leaves more classes a batch than there are.
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
                    f"samples_per_class is {samples_per_class}, which makes batches of "
                    f"{batch_size} hold {self.classes} classes, but there are {len(present)}: "
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
        """[steps_per_epoch, world_size, batch_size] indices: the same in every process."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
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
    """`count` positions, those with the fewest turns first and ties at random; counts their turns.

    Where there are fewer than `count`, they repeat.
    """
    order = (turns + torch.rand(len(turns), generator=generator)).argsort()
    chosen = order.repeat(-(-count // len(order)))[:count]
    turns += torch.bincount(chosen, minlength=len(turns))
    return chosen
