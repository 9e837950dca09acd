"""What a call of the criterion costs on next to no data, against F.cross_entropy."""

import pytest

from benchmarks.cases import DIRECTIONS, HOST_CASES
from benchmarks.conftest import device_of
from benchmarks.losses import NAMES, measure_host
from benchmarks.replay import replayed


def pytest_generate_tests(metafunc):
    metafunc.parametrize(
        ("case", "direction", "competitor"),
        [
            pytest.param(case, direction, name, id=f"{case.name}-{direction}-{name}")
            for case in HOST_CASES[device_of(metafunc.config)]
            for direction in DIRECTIONS
            for name in NAMES
        ],
    )


@pytest.mark.benchmark(timer=replayed)
def test_host(row, device, full, case, direction, competitor):
    def measure():
        return measure_host(case, device, full)

    row("host", case.name, ("host", case.shape), measure, competitor, direction)
