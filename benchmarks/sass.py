"""Code of NVIDIA's GPUs as it was compiled: registers, spills, blocks, and loads in flight."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

# What all blocks of a multiprocessor of sm_90 share, as NVIDIA publishes it.
REGISTERS, SHARED_BYTES, MOST_WARPS, MOST_BLOCKS = 65536, 228 * 1024, 64, 32
SYSTEM_BYTES = 1024  # of shared memory, in every block


class Code(NamedTuple):
    """Of one kernel."""

    registers: int
    spilled: int  # bytes (of AMD's, registers)
    shared: int
    threads: int
    loads: int  # from global memory on their way at a time (in_flight)
    load_bytes: int  # of a thread; these loads together

    @property
    def blocks(self) -> int:
        """That run on a multiprocessor of sm_90 at a time."""
        warps = -(-self.threads // 32)
        of_warp = -(-self.registers * 32 // 256) * 256  # given out in pieces of 256
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


def find_cuobjdump() -> str:
    """It comes with the CUDA toolkit, and with Triton."""
    folders = os.environ["PATH"], f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"
    found = shutil.which("cuobjdump", path=os.pathsep.join(folders))
    if found is None and (triton := importlib.util.find_spec("triton")):
        found = str(Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump")
    if found is None or not Path(found).exists():
        raise FileNotFoundError(
            "cuobjdump is not in PATH, CUDA_HOME or Triton's package: pip install triton"
        )
    return found


def cuobjdump(*arguments: str) -> str:
    command = [find_cuobjdump(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def codes(path: Path, threads: int, *options: str) -> dict[str, Code]:
    """By mangled name: all kernels of a file, of the architecture that the options select."""
    use, name = {}, None
    for line in cuobjdump("-res-usage", *options, str(path)).splitlines():
        if match := re.match(r" Function (\S+):", line):
            name = match[1]
        elif "REG:" in line:
            use[name] = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
    found = {}
    for text in cuobjdump("-sass", *options, str(path)).split("Function : ")[1:]:
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
    them is used; and their bytes. In the innermost loop that is worst at it, of those that load
    most (what an unrolled loop leaves to a second one is not meant); without one, in all code.
    """
    code = instructions(sass)
    loaded = [(sum(one.bytes for one in loop), loop) for loop in loops(code)]
    most = max((count for count, _ in loaded), default=0)
    # A loop is read twice: what it loads for its next turn is in flight over its end.
    streams = [2 * loop for count, loop in loaded if 2 * count > most > 0]
    return min(map(_most_at_a_time, streams or [code]))


def _most_at_a_time(code: list[Instruction]) -> tuple[int, int]:
    """Loads end in the order in which they began."""
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
            most = max(most, (len(flying), sum(load.bytes for load in flying)))
    return most
