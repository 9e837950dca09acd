"""What the Triton backend needs of its surroundings: whether it can run, and where to report."""

import atexit
import contextlib
import functools
import os
import shutil
import sys
import sysconfig

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
def kernels():
    """The module of kernels, imported when first used: `import discfused` needs no Triton."""
    from discfused.backends import triton_kernels

    return triton_kernels


def on(tensor: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


class BadLabels:
    """How many labels of a batch were out of range, told without a synchronisation.

    Kernels write the number into pinned host memory, and only if there are any: no copy, no event,
    nothing that a CUDA graph could not hold. The host looks when it comes by the next time, so the
    error may come one call late, and after the last call when Python ends; the rows themselves
    never count. torch._assert_async would leave the process without a usable device, and could not
    say how many.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.flag = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._host = self.flag.numpy()
        atexit.register(self.last_words)

    def check(self) -> None:
        count = int(self._host[0])
        if count:
            self._host[0] = 0
            raise IndexError(
                f"{count} labels of a batch on {self.device} were out of range: expected class "
                "indices in [0, num_classes) or ignore_index. Their rows did not count."
            )

    def last_words(self) -> None:
        """Too late to raise. What the GPU has not come to by now stays untold."""
        try:
            self.check()
        except IndexError as error:
            print(f"discfused: {error}", file=sys.stderr)

    def check_now(self) -> None:
        """After a kernel: under the interpreter it has run by now."""
        if self.device.type == "cpu":
            self.check()


@functools.cache
def bad_labels(device: torch.device) -> BadLabels:
    return BadLabels(device)
