"""All competitors of a case in turns, so that a machine that slows down slows all of them down.

A round gives everybody a turn; ratios are taken within a round, and their median over the rounds is
reported. Times are medians over all calls. Both with 20 and 80 percentiles.
"""

import gc
import itertools
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import DIRECTIONS, Inputs, Plan

MOST_CALLS = 50  # of a turn
WARM_UP_CALLS = 5

Rounds = list[list[float]]  # seconds of every call, round by round


class Subject(NamedTuple):
    """What is timed: forward() -> state, backward(state)."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]

    def call(self) -> Any:
        return self.backward(self.forward())


def differentiated(loss: Callable[..., Tensor], inputs: Inputs, first: int = 0) -> Subject:
    """The loss, and its gradient by all leaves from the first one wanted."""
    sets = itertools.cycle(inputs.sets)

    def forward() -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves = next(sets)
        return loss(inputs.y, *leaves), leaves[first:]

    return Subject(forward, lambda state: torch.autograd.grad(*state))


def copies(inputs: Inputs) -> Subject:
    """The floor. Forward reads x, so it copies half of x: as many bytes, read or written."""
    sets = itertools.cycle([leaves[0].detach().view(-1) for leaves in inputs.sets])
    written = torch.empty_like(inputs.sets[0][0]).view(-1)
    half = len(written) // 2

    def forward() -> Tensor:
        x = next(sets)
        written[:half].copy_(x[:half])
        return x

    return Subject(forward, written.copy_)


def flat(rounds: Rounds) -> list[float]:
    return [seconds for calls in rounds for seconds in calls]


def percentiles(values: list[float]) -> list[float]:
    """20, 50, 80"""
    points = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return torch.tensor(values, dtype=torch.float64).quantile(points).tolist()


def ratio(numerator: Rounds, denominator: Rounds) -> list[float]:
    """20, 50, 80 percentiles over the rounds"""
    pairs = zip(numerator, denominator, strict=True)
    return percentiles([median(a) / median(b) for a, b in pairs])


def call(subject: Subject, device: str) -> tuple[float, float, float]:
    """Seconds of forward, backward and both."""
    clock, wait = time.perf_counter, (lambda: None)
    if device == "cuda":
        wait = torch.cuda.synchronize
    start = clock()
    state = subject.forward()
    wait()
    middle = clock()
    subject.backward(state)
    wait()
    end = clock()
    forward, backward = middle - start, end - middle
    if device == "cuda":
        # A GPU runs the forward while the host prepares the backward: waiting in between would
        # not be what a training step does.
        start = clock()
        subject.call()
        wait()
        end = clock()
    return forward, backward, end - start


def calls_in(subject: Subject, device: str, seconds: float) -> int:
    """How many calls fit into a turn of so many seconds; also the warm-up."""
    # The first calls wait for new memory: a count taken from them would make all turns short.
    fastest = min(call(subject, device)[2] for _ in range(WARM_UP_CALLS))
    return max(1, min(MOST_CALLS, int(seconds / fastest)))


def turn(subject: Subject, device: str, count: int) -> dict[str, list[float]]:
    """direction -> seconds of so many calls"""
    # Not timed: the one before has left its data in the caches, and the host of a virtual machine
    # may have taken back the memory that this one had in its last turn.
    call(subject, device)
    seconds = [call(subject, device) for _ in range(count)]
    return dict(zip(DIRECTIONS, map(list, zip(*seconds, strict=True)), strict=True))


def in_turns(subjects: dict[str, Subject], device: str, plan: Plan) -> dict[str, dict[str, Rounds]]:
    """name -> direction -> rounds. Everything was compiled before."""
    counts = {name: calls_in(subject, device, plan.turn) for name, subject in subjects.items()}
    results = {name: {direction: [] for direction in DIRECTIONS} for name in subjects}
    order = random.Random(0)
    names = list(subjects)
    start = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for number in range(plan.max_rounds):
            if number >= plan.min_rounds and time.perf_counter() - start > plan.seconds:
                break
            order.shuffle(names)
            for name in names:
                for direction, seconds in turn(subjects[name], device, counts[name]).items():
                    results[name][direction].append(seconds)
    finally:
        gc.enable()
    return results
