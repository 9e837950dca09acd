"""What the Triton backend launches, and what that is compiled to, without a GPU.

Its host code runs on meta tensors, and kernels are written down instead of run.
"""

import functools
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.sass import Code, codes
from discfused import backends
from discfused._definitions import accumulation_dtype
from discfused.backends import triton_runtime

SM_90 = GPUTarget("cuda", 90, 32)
_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int64: "i64", torch.int32: "i32",
}  # fmt: skip


class Launch(NamedTuple):
    kernel: str
    grid: int
    arguments: dict[str, Any]  # by parameter; tensors have shapes and no data
    options: dict[str, int]  # of the compiler: num_warps and others

    @property
    def threads(self) -> int:
        return 32 * self.options["num_warps"]

    @property
    def bytes(self) -> int:
        """Of all tensors that the kernel is given, for classes of equal size. Each counts once:
        tensors that are not there are passed as another one."""
        given = self.arguments
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        if "parts" in given and given["N"] <= given["S"] * given["R"]:  # no slot is cut
            del tensors["parts"]
            if self.kernel == "fold_kernel":
                del tensors["table"]
        return sum({id(t): t.untyped_storage().nbytes() for t in tensors.values()}.values())


class _Recorder:
    def __init__(self, name: str, kernel: Any, found: list[Launch]):
        self.name, self.kernel, self.found = name, kernel, found

    def __getitem__(self, grid: tuple[int]):
        def launch(*arguments, **named):
            names = self.kernel.arg_names
            given = dict(zip(names, arguments, strict=False))
            given |= {name: value for name, value in named.items() if name in names}
            options = {name: value for name, value in named.items() if name not in names}
            self.found.append(Launch(self.name, grid[0], given, options))

        return launch


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Instead of running, kernels are written down here."""
    module, found = triton_runtime.kernels(), []
    kernels = {name: getattr(module, name) for name in module.__all__ if name.endswith("_kernel")}
    try:
        for name, kernel in kernels.items():
            setattr(module, name, _Recorder(name, kernel, found))
        yield found
    finally:
        vars(module).update(kernels)


def launches(
    N: int, D: int, C: int, dtype: torch.dtype, *, soft: bool = False, weighted: bool = False,
    prior: bool = False, activation: int = 0, impurity: int = 0, histogram: bool = False,
) -> tuple[list[Launch], list[Launch]]:  # fmt: skip
    """Of the terms (or of class_histogram), forward and backward."""
    backend, acc = backends.get("triton"), accumulation_dtype(dtype)

    def empty(*shape, dtype=acc):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, y = empty(N, D, dtype=dtype), empty(N, C) if soft else empty(N, dtype=torch.int64)
    with recorded() as found:
        rows = backend.rows(y, empty(N) if weighted else None, C, -100, acc)
        if histogram:
            H = backend.histogram(x, rows, C, activation)
            count = len(found)
            backend.histogram_gradient(H, x, rows, activation)
        else:
            pi = empty(C) if prior else None
            *scalars, kept = backend.terms(x, rows, C, pi, activation, impurity, 0.5, 0.5)
            count = len(found)
            backend.gradient(x, rows, kept, *scalars, activation, 0.5, 0.5)
    return found[:count], found[count:]


@functools.cache
def _compiled(kernel: str, parameters: tuple, options: tuple, target: GPUTarget) -> Any:
    signature, constants, attributes = {}, {}, {}
    for place, (name, kind, value) in enumerate(parameters):
        signature[name] = kind
        if kind == "constexpr":
            constants[(place,)] = value
        elif value:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(getattr(triton_runtime.kernels(), kernel), signature, constants, attributes)
    return triton.compile(source, target=target, options=dict(options))


def signature(launch: Launch) -> tuple[tuple[str, str, Any], ...]:
    """(parameter, type, compile-time value or whether a multiple of 16), as a launch specialises
    them. Allocations begin at multiples of 16."""
    found = []
    for parameter in getattr(triton_runtime.kernels(), launch.kernel).params:
        value = launch.arguments[parameter.name]
        fixed = parameter.do_not_specialize
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not fixed):
            found.append((parameter.name, "constexpr", value))
        elif isinstance(value, Tensor):
            is_aligned = value.storage_offset() * value.itemsize % 16 == 0
            found.append((parameter.name, f"*{_TYPES[value.dtype]}", is_aligned and not fixed))
        elif isinstance(value, int):
            found.append((parameter.name, "i32", not fixed and value % 16 == 0))
        else:
            found.append((parameter.name, "fp32", False))
    return tuple(found)


def compile_launch(launch: Launch, target: GPUTarget = SM_90) -> Any:
    """Compiled for the launch's types, alignments and compile-time arguments."""
    options = tuple(launch.options.items())
    return _compiled(launch.kernel, signature(launch), options, target)


def compiled_code(launch: Launch, target: GPUTarget = SM_90) -> Code:
    binary, threads = compile_launch(launch, target), launch.threads
    if "amdgcn" in binary.asm:
        text = binary.asm["amdgcn"]
        # Scalar registers may spill, too, but into vector registers, not to memory.
        count = {
            name: int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
            for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        }
        spilled = count["vgpr_spill_count"] + count["private_segment_fixed_size"]
        return Code(count["vgpr_count"], spilled, binary.metadata.shared, threads, 0, 0)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        (code,) = codes(Path(file.name), threads).values()
    return code._replace(shared=binary.metadata.shared)  # not in the file
