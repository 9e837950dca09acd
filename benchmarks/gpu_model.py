"""What the GPU backends' kernels must cost on an H100, computed from their compiled code.

python -m benchmarks.gpu_model > docs/gpu-model.md

Nothing here was measured: every figure is computed, from the launches, and from what the compilers
made of the kernels for sm_90. Triton's launches are those of the backend's host code, on tensors
without data; of CUDA's, cuda_launches has an account.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch

from benchmarks import cuda_launches
from benchmarks.cases import Case
from benchmarks.cuda_launches import CudaLaunch
from benchmarks.kernels import CASES
from benchmarks.launches import Launch, compiled_code, launches
from benchmarks.sass import Code, codes
from benchmarks.tables import table

BYTES_A_SECOND = 3.35e12  # of an H100 SXM's memory, as NVIDIA publishes it
# In C++, a kernel and the type that it is made for
KERNEL = re.compile(r"\d([a-z_]+_kernel)I(?:N3c10\d)?(f|d|Half|BFloat16)E")
DTYPES = {"f": "float32", "d": "float64", "Half": "float16", "BFloat16": "bfloat16"}
USE = tuple(f"computed {name}" for name in ("registers", "blocks", "loads", "bytes in flight"))
CSRC = cuda_launches.SOURCES.parent
Stages = tuple[list[Launch], list[Launch]] | tuple[list[CudaLaunch], list[CudaLaunch]]

TERABYTES = BYTES_A_SECOND / 1e12
HEAD = f"""\
# The GPU kernels, computed

Computed, never measured: by `python -m benchmarks.gpu_model > docs/gpu-model.md`, without a GPU.

- **programs**: what CUDA calls blocks.
- **computed bytes**: of all tensors that a kernel is given, each once, for classes of equal size.
  What one kernel has just written the next may find in the L2 cache (50 MB): fewer cross memory.
- **computed time**: what these bytes take at the {TERABYTES:.2f} TB/s that are published of
  an H100. No kernel reaches that; launches and latency come on top.
- **least**: x once forward; backward x once, and its gradient once.
- **registers** of a thread, **blocks** that a multiprocessor holds at a time, **loads** from global
  memory that a thread has on its way before the first is used, in the loop that is worst at it, and
  **bytes in flight** on a multiprocessor that is full: computed from the code that Triton and nvcc
  compile for sm_90. {TERABYTES:.2f} TB/s at a latency of 0.7 microseconds need about 18,000.
"""


def microseconds(count: int) -> str:
    return f"{count / BYTES_A_SECOND * 1e6:.2f} us"


def use(code: Code) -> list[str]:
    return [
        f"{number:,}" for number in (code.registers, code.blocks, code.loads, code.bytes_in_flight)
    ]


def of_case(case: Case, backend: str, stages: Stages, uses: Iterable[Code]) -> list[str]:
    """The launches, one a line, and their sums beside the least."""
    header = ["kernel", "programs", "threads", "computed bytes", "computed time", *USE]
    pairs = zip(chain(*stages), uses, strict=True)
    return [
        f"\n## {case.N} x {case.D}, {case.C} classes, {case.dtype}: {backend}\n",
        table(header, ([*work(launch), *use(code)] for launch, code in pairs)),
        "",
        sums(case, stages),
    ]


# None of these needs a compiler.
def of_triton(case: Case) -> Stages:
    return launches(case.N, case.D, case.C, getattr(torch, case.dtype))


def of_cuda(case: Case) -> Stages:
    return cuda_launches.launches(case.N, case.D, case.C, getattr(torch, case.dtype).itemsize)


def work(launch: Launch | CudaLaunch) -> list[str]:
    return [
        f"`{launch.kernel}`", f"{launch.grid:,}", str(launch.threads),
        f"{launch.bytes:,}", microseconds(launch.bytes),
    ]  # fmt: skip


def sums(case: Case, stages: Stages) -> str:
    header = ["direction", "launches", "computed bytes", "computed time",
              "computed least bytes", "computed least time"]  # fmt: skip
    lines = []
    both = (*stages, [*chain(*stages)])
    for (direction, least), stage in zip(case.least_bytes().items(), both, strict=True):
        count = sum(launch.bytes for launch in stage)
        lines.append([direction, str(len(stage)), f"{count:,}", microseconds(count), f"{least:,}",
                      microseconds(least)])  # fmt: skip
    return table(header, lines)


def compiled_cuda(nvcc: str) -> dict[tuple[str, str], Code]:
    """(kernel, dtype) -> the code of all kernels of csrc/cuda"""
    from torch.utils.cpp_extension import include_paths

    found = {}
    includes = [f"-I{path}" for path in (CSRC, *include_paths())]
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            command = [nvcc, "-O3", "-std=c++17", "-arch=sm_90", "-cubin", *includes]
            subprocess.run([*command, "-o", file.name, str(source)], check=True)
            for mangled, code in sorted(codes(Path(file.name), cuda_launches.THREADS).items()):
                name, dtype = KERNEL.search(mangled).groups()
                found[name, DTYPES[dtype]] = code
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default="nvcc", help="of CUDA 12 or 13 (default: %(default)s)")
    options = parser.parse_args(arguments)
    if shutil.which(options.nvcc) is None:
        raise SystemExit(f"no {options.nvcc} in PATH: install the CUDA toolkit, or give --nvcc")
    cuda = compiled_cuda(options.nvcc)
    print(HEAD.rstrip("\n"))
    for case in CASES:
        stages = of_triton(case)
        print(*of_case(case, "triton", stages, map(compiled_code, chain(*stages))), sep="\n")
        stages = of_cuda(case)
        # Kernels of the features have their dtype, others that of the sums.
        uses = [
            cuda.get((one.kernel, case.dtype)) or cuda[one.kernel, "float32"]
            for one in chain(*stages)
        ]
        print(*of_case(case, "cuda", stages, uses), sep="\n")
    every = ([f"`{name}` {dtype}", *use(code)] for (name, dtype), code in cuda.items())
    print("\n## Every kernel: cuda\n", table(["kernel", *USE], every), sep="\n")


if __name__ == "__main__":
    main()
