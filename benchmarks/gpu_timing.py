"""What wall time hides on a GPU: the time of the device alone. Beside wall time, never instead."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import Subject, percentiles

REPLAYS = 50


def do_bench(subject: Subject) -> dict[str, dict]:
    """Triton's do_bench: device events, the cache flushed before every call."""
    from triton.testing import do_bench

    functions = {
        "forward": subject.forward,
        "both": subject.call,
    }
    result = {}
    for direction, function in functions.items():
        low, middle, high = do_bench(function, quantiles=[0.2, 0.5, 0.8])
        result[direction] = {"median": middle / 1e3, "p20": low / 1e3, "p80": high / 1e3}
    return result


def graph_replays(subject: Subject, sets: int) -> dict[str, dict]:
    """A CUDA graph of one call for every set of inputs; the time of a replay, per call.

    One graph over all sets keeps the gaps between launches small, and the inputs out of the cache.
    """
    functions: dict[str, Callable[[], Any]] = {
        "forward": subject.forward,
        "both": subject.call,
    }
    return {direction: _replays(function, sets) for direction, function in functions.items()}


def _replays(function: Callable[[], Any], sets: int) -> dict:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as the documentation asks: warm up on a side stream
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(sets):
            function()
    graph.replay()
    torch.cuda.synchronize()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(REPLAYS)
    ]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    seconds = [start.elapsed_time(end) / 1e3 / sets for start, end in events]
    low, middle, high = percentiles(seconds)
    return {"median": middle, "p20": low, "p80": high}
