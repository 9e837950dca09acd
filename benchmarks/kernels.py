"""How long every kernel of a call takes on the GPU, by torch.profiler; added to the JSON of a run.

python -m benchmarks.kernels run.json
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import CALTECH, FEW_ROWS, IMAGENET, LARGE, Case, make_inputs
from benchmarks.competitors import FUSED_PREFIX, loss_of
from benchmarks.stored import read
from benchmarks.timing import differentiated
from discfused import backends
from discfused._files import write_atomically

CASES = [case._replace(dtype="bfloat16") for case in (LARGE, IMAGENET, CALTECH, FEW_ROWS)]
REHEARSED = [Case(8, 16, 10)]  # without a GPU: PyTorch's operators instead of kernels
WARM_UP_CALLS, CALLS = 3, {"cuda": 30, "cpu": 3}


def profiled(function: Callable[[], Any], device: str) -> dict[str, list[float]]:
    """name -> microseconds of every launch in so many calls"""
    on_gpu = device == "cuda"
    for _ in range(WARM_UP_CALLS):
        function()
    with profile(activities=[getattr(ProfilerActivity, device.upper())]) as profiler:
        for _ in range(CALLS[device]):
            function()
        if on_gpu:
            torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == getattr(DeviceType, device.upper()):
            found.setdefault(event.name, []).append(event.time_range.elapsed_us())
    return found


def rows(case: Case, backend: str, device: str) -> list[dict[str, Any]]:
    subject = differentiated(loss_of(FUSED_PREFIX + backend, case), make_inputs(case, device))
    found = []
    for name, times in profiled(subject.call, device).items():
        short = re.search(r"\w+_kernel", name)  # of C++ without namespaces and types
        found.append({
            **case._asdict(), "backend": backend, "kernel": short[0] if short else name[:60],
            "launches": len(times) / CALLS[device], "microseconds": round(median(times), 2),
        })  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("json", type=Path, help="of --benchmark-json")
    path = parser.parse_args(arguments).json
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = read(path)
    why_not = {name: backends.get(name).unavailable() for name in ("triton", "cuda")}
    data["kernels"] = [
        row
        for case in (CASES if device == "cuda" else REHEARSED)
        for name, why in why_not.items()
        if why is None
        for row in rows(case, name, device)
    ]
    write_atomically(path, lambda new: new.write_text(json.dumps(data, indent=1)))
    for row in data["kernels"]:
        print(*row.values())
    for name, why in why_not.items():
        if why is not None:
            print(f"{name} is left out: {why}")


if __name__ == "__main__":
    main()
