"""Where and with what a row was measured."""

import datetime
import platform
import re
import subprocess
from pathlib import Path

import torch

import discfused

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
        "commit": commit(),
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


def commit() -> str:
    """The commit, marked where the code differs from it. Results do not count as code."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "discfused", "csrc", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
