"""The choice of a backend, and the report of the available ones.

`reference` (plain PyTorch, any device) is always available. The others implement
`contract.Backend`.
"""

import functools
import os
import warnings
from collections.abc import Iterable
from typing import NamedTuple

from discfused.backends import _library
from discfused.backends.bad_labels import check_labels as check_labels
from discfused.backends.contract import Backend
from discfused.backends.cpu import CpuBackend
from discfused.backends.cuda import CudaBackend
from discfused.backends.triton_backend import TritonBackend

ENVIRONMENT_VARIABLE = "DISCFUSED_BACKEND"

_ALL: tuple[Backend, ...] = CpuBackend(), TritonBackend(), CudaBackend()
_BACKENDS = {backend.name: backend for backend in _ALL}
NAMES = ("reference", *_BACKENDS)

# backend=None selects the first of these that can run on the device type, else the reference. The
# order is by measured time on the device: on an H200 Triton took half as long as CUDA in CUDA
# graphs, but twice as long in eager calls, where Python launches its kernels.
_PREFERRED = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}


class Status(NamedTuple):
    name: str
    available: bool
    reason: str  # its device type, or why it cannot run and what to do

    def __str__(self) -> str:
        return f"{self.name}: {'available' if self.available else 'not available'}, {self.reason}"


def status() -> list[Status]:
    """The status of every backend: whether it can run here, and if not, the reason and the fix."""
    report = [Status("reference", True, "plain PyTorch, on any device")]
    for name, backend in _BACKENDS.items():
        why = backend.unavailable()
        runs = f"on {backend.device_type} tensors{_library.built_for(name)}"
        report.append(Status(name, why is None, why or runs))
    return report


def get(name: str) -> Backend:
    return _BACKENDS[name]


def fused() -> Iterable[Backend]:
    """All backends except the reference."""
    return _BACKENDS.values()


def preferred(device_type: str) -> tuple[str, list[str]]:
    """The backend for backend=None on this device type, and why each faster one cannot run."""
    reasons: list[str] = []
    for name in _PREFERRED.get(device_type, ()):
        why = _BACKENDS[name].unavailable()
        if why is None:
            return name, reasons
        reasons.append(f"{name}: {why}")
    return "reference", reasons


def resolve(device_type: str, requested: str | None) -> str:
    """The name of the requested backend, or of the fastest one that can run."""
    return _resolved(device_type, requested)


# torch.compile treats the result as a constant. torch.compiler.assume_constant_result does the
# same, but imports all of torch._dynamo.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


# Cached, because reading the environment is slow and a fallback warns once.
@functools.cache
def _resolved(device_type: str, requested: str | None) -> str:
    source = f"backend is {requested!r}"
    if requested is None:
        requested = os.environ.get(ENVIRONMENT_VARIABLE) or None
        source = f"{ENVIRONMENT_VARIABLE} is {requested!r}"
    if requested is None:
        return _automatic(device_type)
    if requested not in NAMES:
        raise ValueError(f"{source}, expected one of {', '.join(map(repr, NAMES))}")
    if requested != "reference":
        backend = _BACKENDS[requested]
        why = backend.unavailable()
        if why is None and backend.device_type != device_type:
            why = f"it runs on {backend.device_type} tensors, but the features are on {device_type}"
        if why is not None:
            report = "\n".join(f"  {line}" for line in status())
            raise RuntimeError(f"{source}, but it cannot run here: {why}\n{report}")
    return requested


def _automatic(device_type: str) -> str:
    name, reasons = preferred(device_type)
    if reasons:
        warnings.warn(
            f"discfused uses the slower {name!r} backend on {device_type} tensors ("
            + "; ".join(reasons)
            + f"). To silence this, set {ENVIRONMENT_VARIABLE}={name}.",
            stacklevel=3,
        )
    return name
