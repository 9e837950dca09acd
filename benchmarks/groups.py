"""One group of rows: verify every competitor, time them in turns, and say what a row must say."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import gpu_timing
from benchmarks.cases import DIRECTIONS, PLANS, Case
from benchmarks.competitors import COMPETITORS, COPY, Competitor, Loss, summed, why_not
from benchmarks.memory import peak_bytes
from benchmarks.timing import Calls, Subject, in_turns, percentiles, ratio
from benchmarks.verify import Expected, Inputs, disagreement, make_inputs, oracle


class Group(NamedTuple):
    rows: dict[tuple[str, str], tuple[list[float], dict]]  # (competitor, direction) -> calls, facts
    skipped: dict[str, str]  # competitor -> why it did not take part
    failed: dict[str, str]  # competitor -> how it disagrees with the reference


def facts(calls: Calls) -> dict[str, Any]:
    low, middle, high = percentiles(calls.all)
    return {
        "seconds": middle,
        "p20": low,
        "p80": high,
        "calls": len(calls.all),
        "rounds": len(calls.rounds),
    }


def speedups(name: str, timed: dict[str, Calls]) -> dict[str, float]:
    """How many times as long every other competitor takes."""
    return {other: ratio(calls, timed[name]) for other, calls in timed.items() if other != name}


def bandwidth(calls: Calls, copy: Calls, least: int) -> dict[str, Any]:
    """Of the least bytes; `copy` moves as many."""
    seconds = percentiles(calls.all)[1]
    return {
        "bytes": least,
        "gb_per_s": least / seconds / 1e9,
        "percent_of_copy": 100 * ratio(copy, calls),
    }


def measure_terms(case: Case, dtype: torch.dtype, device: str, full: bool) -> Group:
    """Forward, backward and both of the two terms, by every competitor that can run."""
    skipped, failed, subjects = {}, {}, {}
    inputs = make_inputs(case, device, dtype)
    expected = oracle(inputs)
    torch._dynamo.reset()  # else the second shape would be compiled for every shape
    for name, competitor in COMPETITORS.items():
        reason = why_not(name, device, case, full)
        if reason is None and competitor.terms is None:
            subjects[name] = copies(name, inputs.x)
        elif reason is None:
            loss, reason, wrong = _prepared(competitor, inputs, expected)
            if wrong is not None:
                failed[name] = wrong
            elif reason is None:
                subjects[name] = _subject(loss, inputs)
        if reason is not None:
            skipped[name] = reason
    del expected

    calls = in_turns(subjects, device, PLANS["full" if full else "quick"])
    peaks = {
        name: peak_bytes(subject.call, device)
        for name, subject in subjects.items()
        if not name.startswith(COPY)
    }
    device_times = {}
    if device == "cuda":
        device_times = _device_times(subjects, len(inputs.x))
    least = case.least_bytes(dtype)
    rows = {}
    for direction in DIRECTIONS:
        timed = {name: by_direction[direction] for name, by_direction in calls.items()}
        for name in timed:
            row = facts(timed[name])
            row |= {"N": case.N, "D": case.D, "C": case.C}
            row["dtype"] = str(dtype).removeprefix("torch.")
            row |= bandwidth(timed[name], timed[COPY], least[direction])
            # The copy's backward copies the whole of x once.
            row["copies_of_x"] = ratio(timed[name], calls[COPY]["backward"])
            row["speedup"] = speedups(name, timed)
            if direction == "both" and name in peaks:
                row["peak_bytes"] = peaks[name]
            for clock, times in device_times.get(name, {}).items():
                if isinstance(times, str):
                    row[clock] = {"skipped": times}
                elif direction in times:
                    row[clock] = times[direction]
            rows[name, direction] = timed[name].all, row
    return Group(rows, skipped, failed)


def _prepared(
    competitor: Competitor, inputs: Inputs, expected: Expected
) -> tuple[Loss, str | None, str | None]:
    """The loss, compiled if it is to be; why it cannot run; how it disagrees."""
    loss = summed(competitor.terms)
    if not competitor.compiled:
        return loss, None, disagreement(loss, inputs, expected)
    loss = torch.compile(loss, dynamic=False, fullgraph=True)
    try:
        return loss, None, disagreement(loss, inputs, expected)
    except Exception as error:  # a machine without a compiler must still get the other rows
        reason = f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        return loss, reason, None


def _subject(loss: Loss, inputs: Inputs) -> Subject:
    features = _endless(inputs.x)

    def forward():
        x = next(features)
        return loss(x, inputs.y, inputs.C), x

    return Subject(forward, lambda state: torch.autograd.grad(*state))


def copies(name: str, sets: list[Tensor]) -> Subject:
    """The floor. Forward reads x, so it copies half of x: as many bytes, read or written."""
    features = _endless([x.detach().reshape(-1) for x in sets])
    written = torch.empty_like(sets[0]).view(-1)
    half = len(written) // 2

    def forward():
        x = next(features)
        written[:half].copy_(x[:half])
        return x

    if name == COPY:
        return Subject(forward, written.copy_)
    return Subject(forward, torch.clone)


def _endless(items: Iterable) -> Iterable:
    items = list(items)
    while True:
        yield from items


def _device_times(subjects: dict[str, Subject], sets: int) -> dict[str, dict]:
    """name -> clock -> direction -> times; or why there are none."""
    return {
        name: {
            "do_bench": _or_why_not(gpu_timing.do_bench, subject),
            "cuda_graph": _or_why_not(gpu_timing.graph_replays, subject, sets)
            if name not in COMPETITORS or COMPETITORS[name].in_graphs
            else "it synchronises, so no CUDA graph can hold it",
        }
        for name, subject in subjects.items()
    }


def _or_why_not(measure: Callable[..., dict], *arguments: Any) -> dict | str:
    try:
        return measure(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
