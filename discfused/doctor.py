"""`discfused doctor`: the environment, the backends, and why a faster one does not run."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import discfused
from discfused import backends
from discfused.backends import _library


def facts() -> dict[str, Any]:
    """Facts about this environment, as JSON types."""
    record = _library.build_record()
    return {
        "discfused": discfused.__version__,
        "commit": _library.commit(),
        "folder": str(Path(discfused.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "triton": version("triton"),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "compiled": {
            name: record[name]
            for name in ("built", "left_out", "compiler", "torch", "cuda", "cuda_architectures")
            if name in record
        },
        "backends": [status._asdict() for status in backends.status()],
        "default_backend": {
            device: dict(zip(("name", "because"), _default(device), strict=True))
            for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
        },
    }


def report(found: dict[str, Any]) -> str:
    """The facts as text, one per line, for bug reports."""
    lines = [
        f"discfused {found['discfused']}, commit {found['commit'] or 'unknown'}, {found['folder']}",
        f"python {found['python']}, {found['platform']}",
        f"torch {found['torch']}, CUDA {found['cuda']}, ROCm {found['rocm']}",
        f"{found['threads']} threads, {found['cpu_capability']}",
        f"triton {found['triton'] or 'is not installed'}",
        *(f"cuda:{i} {gpu['name']}, {gpu['architecture']}" for i, gpu in enumerate(found["gpus"])),
        "",
        "compiled library",
    ]
    compiled = found["compiled"]
    if compiled.get("built"):
        lines.append(
            f"  {', '.join(compiled['built'])}: with {compiled['compiler']} for torch "
            f"{compiled['torch']}, CUDA {compiled['cuda']}"
        )
        if "cuda_architectures" in compiled:
            lines.append(f"  CUDA architectures: {' '.join(compiled['cuda_architectures'])}")
    for part, why in compiled.get("left_out", {}).items():
        lines.append(f"  {part}: left out, {why['reason']}: {why['fix']}")
    if not compiled:
        lines.append("  nothing was compiled")
    lines += ["", "backends"]
    lines += [f"  {backends.Status(**status)}" for status in found["backends"]]
    lines += ["", "backend=None means"]
    for device, default in found["default_backend"].items():
        why = "; ".join(default["because"])
        name = default["name"] or "an error"
        lines.append(f"  {name} on {device} tensors" + (f", because {why}" if why else ""))
    return "\n".join(lines)


def _default(device: str) -> tuple[str | None, list[str]]:
    """The backend of calls that name none, or None if they raise an error; and why."""
    variable = backends.ENVIRONMENT_VARIABLE
    if not (named := os.environ.get(variable)):
        return backends.preferred(device)
    try:
        return backends.resolve(device, None), [f"{variable} is {named!r}"]
    except (ValueError, RuntimeError) as error:  # whose further lines list the backends
        return None, [str(error).partition("\n")[0]]


def _gpu(index: int) -> dict[str, str]:
    major, minor = torch.cuda.get_device_capability(index)
    return {"name": torch.cuda.get_device_name(index), "architecture": f"sm_{major}{minor}"}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
