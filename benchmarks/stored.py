"""Results as they are kept: where and with what once, then one row a line."""

import datetime
import json
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

import discfused
from discfused.backends import _library

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def environment(device: str, mode: str) -> dict[str, str | int]:
    try:
        import triton  # not metadata: its package has several names
    except ImportError:
        triton = None
    return {
        "device": device_name(device),
        "device_type": device,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "triton": triton.__version__ if triton else "none",
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "python": platform.python_version(),
        "discfused": discfused.__version__,
        "commit": _library.commit() or "unknown",  # of what is timed
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "mode": mode,
    }


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text() if info.exists() else "")
    return found[1] if found else platform.processor() or platform.machine()


class Results(NamedTuple):
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]  # case, competitor, reason
    kernels: list[dict[str, Any]]  # of benchmarks/kernels.py, if it ran

    @property
    def slug(self) -> str:
        """The name of the files, and of the README's table: cpu, or the name of the GPU."""
        if self.environment["device_type"] == "cpu":
            return "cpu"
        return re.sub(r"\W+", "-", self.environment["device"].lower()).strip("-")

    def select(self, **facts) -> list[dict]:
        return [row for row in self.rows if all(row[key] == v for key, v in facts.items())]


def read(path: Path) -> dict[str, Any]:
    """Either form: what pytest-benchmark wrote (see conftest.py), or what `dump` did."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None
    is_run = isinstance(data, dict) and "environment" in data
    if not is_run or not (data.get("rows") or data.get("benchmarks")):
        raise SystemExit(f"{path} holds no rows: expected the JSON of pytest benchmarks/")
    return data


def load(path: Path) -> Results:
    data = read(path)
    rows = data.get("rows") or [entry["extra_info"] for entry in data["benchmarks"]]
    return Results(data["environment"], rows, data["skipped"], data.get("kernels", []))


def dump(results: Results) -> str:
    """One row a line: a change of one row is a change of one line."""
    parts = [f'{{"environment": {json.dumps(results.environment)}']
    for name, items in list(results._asdict().items())[1:]:
        if items or name != "kernels":
            parts.append(f'"{name}": [\n' + ",\n".join(map(json.dumps, items)) + "\n]")
    return ",\n".join(parts) + "}\n"
