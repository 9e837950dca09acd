"""The options, and the results that the rows of a case share.

--full             every case, and more rounds (about a quarter of an hour on 2 cores)
--device cpu|cuda  default: cuda where there is one
"""

from collections.abc import Callable

import pytest
import torch

from benchmarks.cases import Case, cases
from benchmarks.measure import Measured, measure
from benchmarks.stored import environment

SKIPPED = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="benchmarks: every case, more rounds")
    parser.addoption("--device", choices=["cpu", "cuda"], help="benchmarks: where to measure")


def pytest_configure(config):
    config.stash[SKIPPED] = []


def is_full(config) -> bool:
    return bool(config.getoption("--full", False))


def device_of(config) -> str:
    named = config.getoption("--device", None)
    return named or ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def measured(request) -> Callable[[Case], Measured]:
    """A case is measured once, when its first row is asked for."""
    device, full = device_of(request.config), is_full(request.config)
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda, but PyTorch sees no GPU")
    first, done = cases(device, full)[0], {}

    def of(case: Case) -> Measured:
        if case not in done:
            done[case] = measure(case, device, full, compiles=full or case == first)
        return done[case]

    return of


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, output_json):
    mode = "full" if is_full(config) else "quick"
    output_json["environment"] = environment(device_of(config), mode)
    output_json["skipped"] = config.stash[SKIPPED]  # who did not take part is a result, too
    output_json["machine_info"].pop("node", None)  # the name of the machine is nobody's business
