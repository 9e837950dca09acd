"""What the Triton backend needs of its surroundings: whether it can run, and where."""

import contextlib
import functools
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def interpreted() -> bool:
    """Triton's own switch: its kernels run in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def missing(interpreted: bool) -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return (
            f"Triton cannot be imported ({error}): pip install triton, in the release that this "
            "PyTorch asks for (its CUDA and ROCm builds bring one)"
        )
    if interpreted:
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU: install its CUDA or ROCm build and a driver, or use the CPU"
    # Triton compiles a small launcher in C when a kernel first runs.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler: install gcc or clang, or set CC"
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.exists(header):
        return f"Triton's launcher needs {header}: install python3-dev (python3-devel)"
    return None


@functools.cache
def kernels() -> ModuleType:
    """The module of kernels, imported when first used: `import discfused` needs no Triton."""
    from discfused.backends import triton_kernels

    return triton_kernels


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
