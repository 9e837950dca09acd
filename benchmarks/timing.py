"""All competitors of a group in turns, so that a machine that slows down slows all of them down.

A round gives everybody a turn; ratios are taken within a round, and their median over the rounds is
reported. Times are medians over all calls, with 20 and 80 percentiles.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.cases import DIRECTIONS, Plan

SLOW = 0.5  # seconds: one such call is warm-up enough


class Subject(NamedTuple):
    """What is timed: forward() -> state, backward(state)."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]

    def call(self) -> Any:
        return self.backward(self.forward())


class Calls(NamedTuple):
    """Seconds of every call, round by round."""

    rounds: list[list[float]]

    @property
    def all(self) -> list[float]:
        return [seconds for calls in self.rounds for seconds in calls]

    @property
    def medians(self) -> list[float]:
        return [statistics.median(calls) for calls in self.rounds]


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """20, 50, 80"""
    values = torch.tensor(values, dtype=torch.float64)
    return tuple(values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist())


def ratio(numerator: Calls, denominator: Calls) -> float:
    pairs = zip(numerator.medians, denominator.medians, strict=True)
    return statistics.median(a / b for a, b in pairs)


def _nothing() -> None:
    pass


def _call(subject: Subject, synchronize: Callable[[], None]) -> tuple[float, float, float]:
    """Seconds of forward, backward and both."""
    clock = time.perf_counter
    start = clock()
    state = subject.forward()
    synchronize()
    middle = clock()
    subject.backward(state)
    synchronize()
    end = clock()
    if synchronize is _nothing:
        return middle - start, end - middle, end - start
    # A GPU runs the forward while the host prepares the backward: waiting in between would not
    # be what a training step does.
    forward, backward = middle - start, end - middle
    start = clock()
    subject.call()
    synchronize()
    return forward, backward, clock() - start


def in_turns(subjects: dict[str, Subject], device: str, plan: Plan) -> dict[str, dict[str, Calls]]:
    """name -> direction -> Calls. Everything was compiled before: see `verify`."""
    synchronize = torch.cuda.synchronize if device == "cuda" else _nothing
    repeats = {}
    for name, subject in subjects.items():
        seconds = _call(subject, synchronize)[2]  # warm-up
        if seconds < SLOW:
            seconds = _call(subject, synchronize)[2]
        repeats[name] = max(1, min(50, int(plan.turn / seconds)))
    results = {name: {direction: Calls([]) for direction in DIRECTIONS} for name in subjects}
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
                if repeats[name] > 1:  # what the one before left in the caches is not its fault
                    _call(subjects[name], synchronize)
                calls = [_call(subjects[name], synchronize) for _ in range(repeats[name])]
                for direction, seconds in zip(DIRECTIONS, zip(*calls, strict=True), strict=True):
                    results[name][direction].rounds.append(list(seconds))
    finally:
        gc.enable()
    return results
