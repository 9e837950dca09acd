"""Forward, backward and both of the two terms: `-k core` for the speed table of the core."""

import pytest

from benchmarks.cases import DIRECTIONS, DTYPES, QUICK, SUITES
from benchmarks.competitors import COMPETITORS
from benchmarks.conftest import device_of, is_full
from benchmarks.groups import measure_terms
from benchmarks.replay import replayed


def pytest_generate_tests(metafunc):
    suites = SUITES if is_full(metafunc.config) else QUICK
    dtypes = DTYPES[device_of(metafunc.config)]
    metafunc.parametrize(
        ("suite", "case", "dtype", "direction", "competitor"),
        [
            pytest.param(suite, case, dtype, direction, name, id=f"{suite}-{case.name}-{direction}-"
                         f"{str(dtype).removeprefix('torch.')}-{name}")
            for suite in suites
            for case in SUITES[suite]
            for dtype in dtypes
            for direction in DIRECTIONS
            for name in COMPETITORS
        ],
    )  # fmt: skip


@pytest.mark.benchmark(timer=replayed)
def test_terms(row, device, full, suite, case, dtype, direction, competitor):
    key = (case.shape, str(dtype).removeprefix("torch."))  # sweeps meet the core cases

    def measure():
        return measure_terms(case, dtype, device, full)

    row(suite, case.name, key, measure, competitor, direction)
