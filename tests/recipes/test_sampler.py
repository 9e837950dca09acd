"""Batches: equal turns for all samples, distinct batches per process, start at any step."""

import recipe_cases  # noqa: F401

# isort: split
import pytest
import torch

from discfused.recipes.sampler import Batches

LABELS = torch.tensor([0] * 12 + [1] * 12 + [2] * 9 + [3] * 12)


def steps(batches):
    return [[index for _, index in batch] for batch in batches]


@pytest.mark.parametrize("samples_per_class", [None, 2])
def test_processes_share_an_epoch_without_overlap(samples_per_class):
    ranks = [
        Batches(LABELS, 6, samples_per_class, seed=3, rank=rank, world_size=3) for rank in range(3)
    ]
    shared = [steps(batches) for batches in ranks]
    assert [len(batches) for batches in shared] == [len(LABELS) // 18] * 3
    for together in zip(*shared, strict=True):
        indices = [index for batch in together for index in batch]
        assert len(set(indices)) == 18


def test_shuffled_batches_show_every_sample_once_an_epoch():
    epochs = [steps(Batches(LABELS, 9, seed=0, start=start, stop=start + 5)) for start in (0, 5)]
    flat = [[index for batch in epoch for index in batch] for epoch in epochs]
    assert [sorted(indices) for indices in flat] == [list(range(45))] * 2
    assert flat[0] != flat[1]


def test_balanced_batches_hold_equally_many_of_each_class():
    batches = Batches(LABELS, 6, 2, seed=1)
    for batch in steps(batches):
        counts = LABELS[batch].bincount(minlength=4)
        assert sorted(counts.tolist()) == [0, 2, 2, 2] and len(set(batch)) == 6
    shown = torch.tensor(steps(batches)).flatten()
    turns = LABELS[shown].bincount()
    assert turns.max() - turns.min() <= 2  # every class comes as often, give or take one turn
    of_large = shown[LABELS[shown] != 2].bincount(minlength=45)
    assert of_large.max() == 1  # nothing twice before all came once


def test_a_class_of_few_samples_repeats_them():
    labels = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])
    for batch in steps(Batches(labels, 8, 4)):
        assert labels[batch].bincount().tolist() == [4, 4]


@pytest.mark.parametrize("samples_per_class", [None, 3])
def test_any_step_can_be_the_first(samples_per_class):
    whole = list(Batches(LABELS, 6, samples_per_class, seed=5, stop=20))
    for start in (1, 6, 7, 13, 19, 20):
        rest = Batches(LABELS, 6, samples_per_class, seed=5, start=start, stop=20)
        assert list(rest) == whole[start:] and len(rest) == 20 - start
    assert [batch[0][0] for batch in whole] == [step // 7 for step in range(20)]  # the epoch
    assert list(Batches(LABELS, 6, samples_per_class, seed=6, stop=20)) != whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((50,), "batch_size is 50 in each of 1 processes, expected at most the 45"),
        ((6, 4), "samples_per_class is 4, expected a divisor of batch_size, which is 6"),
        ((10, 2), "have 5 classes, but there are 4"),
    ],
)
def test_impossible_batches_are_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(LABELS, *arguments)
