"""Where and with what a row was measured."""

import datetime
import platform
import re
from pathlib import Path

import torch

import discfused
from discfused.backends import _library

ROOT = Path(__file__).resolve().parent.parent


def describe(device: str, mode: str) -> dict[str, str | int]:
    return {
        "device": device_name(device),
        "device_type": device,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "python": platform.python_version(),
        "discfused": discfused.__version__,
        "commit": _library.commit() or "unknown",  # of what is timed
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "mode": mode,
    }


def triton_version() -> str:
    try:
        import triton  # not metadata: its package has several names
    except ImportError:
        return "none"
    return triton.__version__


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def slug(device_type: str, device: str) -> str:
    """The name of the results' files, and of the README's table: one for the CPU, one a GPU."""
    return device_type if device_type == "cpu" else re.sub(r"\W+", "-", device.lower()).strip("-")
