"""Forward, backward and both, of every case and competitor: `-k` takes parts of their names.

pytest-benchmark times one row after another. Here the rows of a case were timed in turns, before
the first of them was asked for, and the clock that pytest-benchmark reads replays their seconds.
"""

from collections.abc import Iterator

import pytest

from benchmarks.cases import cases
from benchmarks.competitors import names
from benchmarks.conftest import SKIPPED, device_of, is_full

_stamps: Iterator[float] = iter(())


def _replayed() -> float:
    return next(_stamps)


def pytest_generate_tests(metafunc):
    metafunc.parametrize(
        ("case", "direction", "competitor"),
        [
            pytest.param(case, direction, name, id=f"{case.name}-{direction}-{name}")
            for case in cases(device_of(metafunc.config), is_full(metafunc.config))
            for direction in case.directions
            for name in names(case)
        ],
    )


@pytest.mark.benchmark(timer=_replayed)
def test_speed(benchmark, measured, request, case, direction, competitor):
    global _stamps
    if benchmark.disabled:
        benchmark.skipped = True  # else pytest-benchmark warns that its fixture was not used
        pytest.skip("nothing is timed with --benchmark-disable")
    result = measured(case)
    if competitor in result.failed:
        pytest.fail(f"{competitor} is not timed, because it is wrong: {result.failed[competitor]}")
    names = {"case": case.name, "competitor": competitor}
    if competitor in result.skipped:
        entry = names | {"reason": result.skipped[competitor]}
        if entry not in request.config.stash[SKIPPED]:
            request.config.stash[SKIPPED].append(entry)
        benchmark.skipped = True
        pytest.skip(entry["reason"])
    seconds, facts = result.rows[competitor, direction]
    benchmark.extra_info |= names | {"direction": direction} | facts
    benchmark.group = f"{case.name} {direction}"
    _stamps = (stamp for duration in seconds for stamp in (0.0, duration))
    benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=1)
