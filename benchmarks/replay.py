"""The clock that pytest-benchmark reads.

pytest-benchmark times one row after another. Here the rows of a group were timed in turns, before
the first of them was asked for, and every row shows its own seconds: this clock replays them into
pytest-benchmark's statistics.
"""

from collections.abc import Iterator

_stamps: Iterator[float] = iter(())


def replayed() -> float:
    return next(_stamps)


def replay(benchmark, seconds: list[float]) -> None:
    """Needs `@pytest.mark.benchmark(timer=replayed)`."""
    global _stamps
    _stamps = (stamp for duration in seconds for stamp in (0.0, duration))
    benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=1)
