"""Options, and what the rows of a group share.

--full            every case and sweep, and more rounds (about half an hour on 2 cores)
--device cpu|cuda default: cuda where there is one
"""

from collections.abc import Callable

import pytest
import torch

from benchmarks.environment import describe
from benchmarks.groups import Group
from benchmarks.replay import replay


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="benchmarks: every case, more rounds")
    parser.addoption("--device", choices=["cpu", "cuda"], help="benchmarks: where to measure")


def is_full(config) -> bool:
    return bool(config.getoption("--full", False))


def device_of(config) -> str:
    named = config.getoption("--device", None)
    return named or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def full(request) -> bool:
    return is_full(request.config)


@pytest.fixture(scope="session")
def device(request) -> str:
    device = device_of(request.config)
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda, but PyTorch sees no GPU")
    return device


@pytest.fixture(scope="session")
def environment(device, full) -> dict:
    return describe(device, "full" if full else "quick")


@pytest.fixture(scope="session")
def groups() -> dict:
    """What was measured so far: a group is measured once, when its first row is asked for."""
    return {}


@pytest.fixture
def row(benchmark, groups, environment, request) -> Callable:
    """This test as a row of a group; `key` tells groups apart, which several suites may share."""

    def show(
        suite: str,
        case: str,
        key: tuple[str, ...],
        measure: Callable[[], Group],
        competitor: str,
        direction: str,
    ) -> None:
        if benchmark.disabled:
            _leave_out(benchmark, "nothing is timed with --benchmark-disable")
        if key not in groups:
            groups[key] = measure()
        group = groups[key]
        wrong = group.failed.get(competitor)
        reason = group.skipped.get(competitor) or (wrong and f"it is wrong: {wrong}")
        if reason:
            names = {"suite": suite, "group": " ".join(key), "competitor": competitor}
            request.config.stash[SKIPPED].append(names | {"reason": reason})
        if wrong:
            pytest.fail(f"{competitor} is not timed, {reason}")
        if reason:
            _leave_out(benchmark, reason)
        seconds, facts = group.rows[competitor, direction]
        names = {"suite": suite, "case": case, "competitor": competitor, "direction": direction}
        benchmark.extra_info |= names | facts | environment
        benchmark.group = " ".join((*key, direction))
        replay(benchmark, seconds)

    return show


def _leave_out(benchmark, reason: str) -> None:
    benchmark.skipped = True  # else pytest-benchmark warns that its fixture was not used
    pytest.skip(reason)


SKIPPED = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[SKIPPED] = []


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, output_json):
    """Who did not take part is a result too; the name of the machine is not."""
    seen = {(row["group"], row["competitor"]): row for row in config.stash[SKIPPED]}
    output_json["skipped"] = list(seen.values())
    output_json["machine_info"].pop("node", None)
