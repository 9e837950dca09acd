"""GPU code as it was compiled, read without a GPU: registers, spills, blocks and loads in flight.

A launch of the Triton backend is recorded by running its host code on meta tensors, so what is
compiled here is what a GPU would run.
"""

import functools
import re
import subprocess
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

from discfused import backends
from discfused._definitions import accumulation_dtype
from discfused.backends import triton_runtime

SM_90 = GPUTarget("cuda", 90, 32)
# Of sm_90, as NVIDIA publishes them: what all blocks of a multiprocessor share.
REGISTERS, SHARED_BYTES, MOST_WARPS, MOST_BLOCKS = 65536, 228 * 1024, 64, 32
SYSTEM_BYTES = 1024  # of shared memory, in every block

_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int64: "i64", torch.int32: "i32",
}  # fmt: skip


# ---------------------------------------------------------------- launches of Triton


class Launch(NamedTuple):
    kernel: str
    grid: int
    arguments: dict[str, Any]  # by parameter; tensors have shapes and no data
    options: dict[str, int]  # num_warps

    def tensors(self) -> list[Tensor]:
        """Each once: tensors that are not there are passed as another one."""
        given = (value for value in self.arguments.values() if isinstance(value, Tensor))
        return list({id(tensor): tensor for tensor in given}.values())

    def bytes(self) -> int:
        """Of all tensors that the kernel is given."""
        return sum(t.untyped_storage().nbytes() for t in self.tensors())


class _Recorder:
    def __init__(self, name: str, kernel: Any, found: list[Launch]):
        self.name, self.kernel, self.found = name, kernel, found

    def __getitem__(self, grid: tuple[int]):
        def launch(*arguments, num_warps: int = 4, **named):
            names = self.kernel.arg_names
            given = dict(zip(names, arguments, strict=False)) | named
            self.found.append(Launch(self.name, grid[0], given, {"num_warps": num_warps}))

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


# ---------------------------------------------------------------- compiled code


class Code(NamedTuple):
    """Of one kernel."""

    registers: int
    spilled: int  # bytes (of AMD's, registers)
    shared: int
    threads: int
    loads: int  # from global memory in flight at a time, in the loop that loads most
    load_bytes: int  # of a thread; these loads together

    @property
    def blocks(self) -> int:
        """That run on a multiprocessor of sm_90 at a time."""
        warps = -(-self.threads // 32)
        of_warp = -(-self.registers * 32 // 256) * 256
        return min(
            MOST_BLOCKS,
            MOST_WARPS // warps,
            REGISTERS // of_warp // warps,
            SHARED_BYTES // (self.shared + SYSTEM_BYTES),
        )

    @property
    def bytes_in_flight(self) -> int:
        """On a multiprocessor."""
        return self.blocks * self.threads * self.load_bytes


def _nvidia_tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends/nvidia/bin" / name)


def cuobjdump(path: Path | str, *options: str) -> str:
    command = [_nvidia_tool("cuobjdump"), *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def code_of_triton(binary: Any, threads: int) -> Code:
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
    return code._replace(shared=binary.metadata.shared)  # of which the file knows nothing


def codes(path: Path, threads: int, *options: str) -> dict[str, Code]:
    """By mangled name: all kernels of a file, which has one architecture or is told which."""
    use, name = {}, None
    for line in cuobjdump(path, "-res-usage", *options).splitlines():
        if match := re.match(r" Function (\S+):", line):
            name = match[1]
        elif "REG:" in line:
            use[name] = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
    found = {}
    for text in cuobjdump(path, "-sass", *options).split("Function : ")[1:]:
        name, _, body = text.partition("\n")
        of = use[name.strip()]
        loads, load_bytes = in_flight(body)
        # STACK holds spills, and nothing else here: no kernel has an array or calls a function.
        spilled = of["STACK"] + of["LOCAL"]
        # From sm_90 on the system's share is counted with that of a kernel that has any.
        shared = max(0, of["SHARED"] - SYSTEM_BYTES)
        found[name.strip()] = Code(of["REG"], spilled, shared, threads, loads, load_bytes)
    return found


# ---------------------------------------------------------------- loads in flight


class Instruction(NamedTuple):
    address: int
    name: str
    operands: list[str]

    @property
    def bytes(self) -> int:
        """That a load from global memory brings; 0 for another instruction."""
        if not self.name.startswith("LDG"):
            return 0
        width = re.search(r"\.(U?S?8|U?S?16|64|128)\b", self.name)
        return int(re.sub("[US]", "", width[1])) // 8 if width else 4

    def _registers(self, operands: list[str]) -> set[int]:
        return {int(n) for text in operands for n in re.findall(r"(?<![A-Z])R(\d+)", text)}

    @property
    def reads(self) -> set[int]:
        """Registers; of pairs the first."""
        has_result = bool(self.operands) and re.match(r"R\d+", self.operands[0])
        stores = self.name.startswith(("ST", "RED"))
        return self._registers(self.operands[1 if has_result and not stores else 0 :])

    @property
    def loaded(self) -> set[int]:
        (first,) = self._registers(self.operands[:1])
        return set(range(first, first + max(1, self.bytes // 4)))


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")


def instructions(sass: str) -> list[Instruction]:
    return [
        Instruction(int(address, 16), name, [part for part in rest.split(", ") if part])
        for address, name, rest in _LINE.findall(sass)
    ]


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The innermost ones."""
    spans = []
    for one in code:
        if one.name.startswith("BRA") and (target := re.search(r"0x([0-9a-f]+)", one.operands[-1])):
            first = int(target[1], 16)
            if first < one.address:
                spans.append((first, one.address))
    inner = [
        (first, last) for first, last in spans
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)
    ]  # fmt: skip
    return [[one for one in code if first <= one.address <= last] for first, last in set(inner)]


def in_flight(sass: str) -> tuple[int, int]:
    """How many loads from global memory are on their way at a time, at most, before the first of
    them is used; and their bytes. In the innermost loop that loads most; without one, in all code.

    Loads end in the order in which they began. A loop is read twice: what it loads for its next
    turn is in flight over its end.
    """
    code = instructions(sass)
    found = [_most(loop * 2) for loop in loops(code) if any(one.bytes for one in loop)]
    return max(found, key=lambda pair: pair[1]) if found else _most(code)


def _most(code: list[Instruction]) -> tuple[int, int]:
    flying: list[Instruction] = []
    most = (0, 0)
    for one in code:
        reads = one.reads
        for place in reversed(range(len(flying))):
            if flying[place].loaded & reads:
                del flying[: place + 1]
                break
        if one.bytes:
            flying.append(one)
            most = max(most, (len(flying), sum(load.bytes for load in flying)), key=lambda m: m[1])
    return most
