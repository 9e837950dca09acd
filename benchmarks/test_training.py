"""A training step with cross-entropy, with the plain form, and with discfused attached."""

import pytest

from benchmarks.cases import trainings
from benchmarks.conftest import device_of, is_full
from benchmarks.losses import NAMES
from benchmarks.replay import replayed
from benchmarks.training import DIRECTIONS, measure_training


def pytest_generate_tests(metafunc):
    networks = trainings(device_of(metafunc.config), is_full(metafunc.config))
    metafunc.parametrize(
        ("training", "part", "competitor"),
        [
            pytest.param(training, part, name, id=f"{training.name}-{part}-{name}")
            for training in networks
            for part in DIRECTIONS
            for name in NAMES
        ],
    )


@pytest.mark.benchmark(timer=replayed)
def test_training(row, device, full, training, part, competitor):
    def measure():
        return measure_training(training, device, full)

    row("training", training.name, (training.name,), measure, competitor, part)
