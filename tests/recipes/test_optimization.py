"""Schedules of the terms' weights and of the learning rate."""

from recipe_cases import run_options

# isort: split
from pathlib import Path

import pytest
from torch import nn

from discfused.recipes import optimization
from discfused.recipes.options import parse, read


@pytest.mark.parametrize(
    ("start", "ramp", "expected"),
    [
        (0, 0, [2, 2, 2, 2, 2, 2, 2, 2]),
        (0, 0.5, [0, 0.5, 1, 1.5, 2, 2, 2, 2]),
        (0.5, 0, [0, 0, 0, 0, 2, 2, 2, 2]),
        (0.25, 0.25, [0, 0, 0, 1, 2, 2, 2, 2]),
        (0.04, 0, [0, 2, 2, 2, 2, 2, 2, 2]),
        (1, 0, [0, 0, 2, 2, 2, 2, 2, 2]),  # epochs, of two steps each
        (3, 0, [0, 0, 0, 0, 0, 0, 2, 2]),
    ],
)
def test_when_the_terms_are_on(start, ramp, expected):
    changes = {"loss.start": start, "loss.ramp": ramp, "loss.gini_weight": 2.0}
    loss = run_options(changes={"loss.name": "ce+gini", **changes}).loss
    assert [optimization.term_weights(loss, step, 8, 2) for step in range(8)] == [
        (weight, 0.0) for weight in expected
    ]


def rates(stepper, options, steps, per_epoch):
    schedule, seen = optimization.schedule(stepper, options, steps, per_epoch), []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        stepper.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("schedule", "peak"), [("constant", 0), ("cosine", 2), ("one-cycle", 2)]
)  # fmt: skip
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_schedules_of_the_learning_rate(schedule, peak, optimizer):
    changes = {"train.lr_schedule": schedule, "train.lr_warmup": 0.3, "train.optimizer": optimizer}
    options = run_options(changes={**changes, "train.lr": 0.5}).train
    seen = rates(optimization.optimizer(nn.Linear(1, 1), options), options, 10, per_epoch=5)
    assert max(seen) == pytest.approx(0.5) and seen.index(max(seen)) == peak
    assert (seen[-1] < 0.05) == (schedule != "constant")


def test_the_learning_rate_of_the_paper():
    options = parse(read(Path("cifar100"))).train
    assert (options.epochs, options.batch_size, options.momentum) == (250, 200, 0.9)
    stepper = optimization.optimizer(nn.Linear(1, 1), options)
    assert not stepper.defaults["nesterov"]
    seen = rates(stepper, options, 500, per_epoch=2)
    changes = [step for step in range(1, 500) if seen[step] != seen[step - 1]]
    assert changes == [120, 240, 320, 400]
    assert seen[0] == 0.1 and seen[-1] == pytest.approx(0.1 * 0.2**4)
