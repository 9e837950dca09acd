"""What this machine can compile; and of each part that it cannot: why, and what to do.

Standard library only: find_compiler is called before any torch is installed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

CSRC = Path(__file__).resolve().parents[1] / "csrc"
PARTS = ("cpu", "cuda")
CHOICES = ("auto", "none", *PARTS)
DEFAULT_ARCHITECTURES = ("8.0", "9.0+PTX")  # where no GPU is visible; in torch's notation
BYTES_PER_JOB = 2 * 1024**3


class LeftOut(Exception):
    """Why a part is not compiled, and what to do about it."""

    def __init__(self, reason: str, fix: str):
        super().__init__(f"{reason}: {fix}")
        self.reason = reason
        self.fix = fix


class Plan:
    """What to compile, with what; decided once, and shortened where compiling fails."""

    def __init__(self, request: str):
        self.request = request
        self.parts: list[str] = []
        self.left_out: dict[str, LeftOut] = {}
        self.torch: ModuleType | None = None
        self.compiler: str | None = None
        self.nvcc: Nvcc | None = None

    def leave_out(self, part: str, why: LeftOut) -> None:
        """Goes on without the part, unless it was asked for by name."""
        if part == self.request:
            raise SystemExit(f"DISCFUSED_BUILD is {self.request!r}, but {why}")
        self.left_out[part] = why

    def compiling_failed(self, error: Exception) -> None:
        part = self.parts.pop()
        why = LeftOut(
            f"compiling the {part} kernels with {self.compiler} failed ({error})",
            "read the compiler's messages, which pip install --verbose shows",
        )
        self.leave_out(part, why)

    def record(self) -> dict:
        """What the installed package keeps: for `doctor`, and for the check before loading."""
        left_out = {
            part: {"reason": why.reason, "fix": why.fix} for part, why in self.left_out.items()
        }
        record = {"built": self.parts, "left_out": left_out}
        if self.parts:
            versions = {"torch": str(self.torch.__version__), "cuda": self.torch.version.cuda}
            record |= versions | {"compiler": self.compiler}
        if "cuda" in self.parts:
            record["cuda_architectures"] = self.nvcc.architectures()
        return record


def requested() -> str:
    value = os.environ.get("DISCFUSED_BUILD") or "auto"
    if value not in CHOICES:
        raise SystemExit(f"DISCFUSED_BUILD is {value!r}, expected one of {', '.join(CHOICES)}")
    return value


def decide(request: str, import_torch: Callable[[], ModuleType]) -> Plan:
    """import_torch gives the torch to compile against, or raises LeftOut."""
    plan = Plan(request)
    if request == "none":
        why = LeftOut("DISCFUSED_BUILD=none asked for pure Python", "unset it and install again")
        plan.left_out = dict.fromkeys(PARTS, why)
        return plan
    try:
        plan.compiler = find_compiler()
        plan.torch = torch = import_torch()
    except LeftOut as why:
        for part in PARTS:  # cuda needs the cpu part, too
            plan.leave_out(part, why)
        return plan
    plan.parts.append("cpu")
    if not plan.compiler.startswith("GCC"):
        plan.left_out["threads"] = LeftOut(
            f"{plan.compiler} brings another OpenMP runtime than the one that torch uses",
            "compile with CC=gcc CXX=g++",
        )
    try:
        plan.nvcc = find_cuda(request, torch.__version__, torch.version.cuda, visible_gpus(torch))
        plan.parts.append("cuda")
    except LeftOut as why:
        plan.leave_out("cuda", why)
    return plan


def find_compiler() -> str:
    """Name and version of the C++ compiler that torch.utils.cpp_extension would run."""
    if sys.platform == "win32":
        raise LeftOut(
            "the kernels need the vector extensions of GCC and Clang, which MSVC lacks",
            "use WSL, or stay with the backends that need no compiler",
        )
    command = os.environ.get("CXX", "c++")
    try:
        probe = [*shlex.split(command), "-dM", "-E", "-x", "c++", os.devnull]
        text = subprocess.run(probe, capture_output=True, text=True, check=True).stdout
        if "__GNUC__" not in text:  # Clang defines it, too
            raise ValueError("it is neither GCC nor Clang")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise LeftOut(
            f"the C++ compiler {command!r} does not work ({error})",
            "install GCC (the package g++ or gcc-c++) or set CXX to a C++ compiler, then install "
            "discfused again",
        ) from None
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise LeftOut(
            f"{header} is missing",
            "install the headers of Python (the package python3-dev or python3-devel), then "
            "install discfused again",
        )
    macros = dict(line.split(" ", 2)[1:] for line in text.splitlines() if line.count(" ") > 1)
    if "__clang__" in macros:
        return "Clang {__clang_major__}.{__clang_minor__}".format_map(macros)
    return "GCC {__GNUC__}.{__GNUC_MINOR__}".format_map(macros)


def visible_gpus(torch: ModuleType) -> list[str]:
    """The architectures of the GPUs at hand, each once."""
    try:
        if not torch.cuda.is_available():
            return []
        found = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
        return [f"{major}.{minor}" for major, minor in sorted(set(found))]
    except RuntimeError:  # a GPU that does not answer is no reason not to install
        return []


class Nvcc:
    """A CUDA compiler: its version, folder and architectures."""

    def __init__(self, path: str, visible: Sequence[str] = ()):
        self.path = path
        self.wanted = visible or DEFAULT_ARCHITECTURES
        match = re.search(r"release (\d+\.\d+)", self._ask("--version"))
        self.version = match[1] if match else "of an unknown version"
        # Found by asking, not from the path: an nvcc on PATH can be a wrapper that lives elsewhere.
        match = re.search(r"TOP=(.+)", self._ask("--dryrun", "-x", "cu", "-c", os.devnull))
        self.home = Path(match[1].strip() if match else Path(path).parents[1]).resolve()

    def _ask(self, *arguments: str) -> str:
        try:
            answer = subprocess.run([self.path, *arguments], capture_output=True, text=True)
        except OSError as error:
            raise LeftOut(f"{self.path} does not work ({error})", "repair it") from None
        return answer.stdout + answer.stderr

    def architectures(self) -> list[str]:
        """What to compile for, in torch's notation."""
        chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
        if chosen:
            return re.split(r"[ ;]+", chosen.strip())
        known = self._ask("--list-gpu-code").split()
        return [name for name in self.wanted if f"sm_{_number(name)}" in known]

    def architecture_flags(self) -> list[str]:
        """Without them, torch fails where no GPU is visible."""
        if os.environ.get("TORCH_CUDA_ARCH_LIST"):
            return []  # torch reads it
        flags = []
        for name in self.architectures():
            number = _number(name)
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if name.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags


def _number(architecture: str) -> str:
    return architecture.removesuffix("+PTX").replace(".", "")


def find_cuda(
    request: str, torch_version: str, torch_cuda: str | None, visible: Sequence[str] = ()
) -> Nvcc:
    """The nvcc to compile csrc/cuda with; what matters is torch's CUDA, not a visible GPU."""
    if request == "cpu":
        raise LeftOut("DISCFUSED_BUILD=cpu asked for the CPU kernels only", "unset it")
    if torch_cuda is None:
        raise LeftOut(
            f"torch {torch_version} is not a CUDA build",
            "install a CUDA build of torch, then install discfused again",
        )
    major = torch_cuda.split(".")[0]
    home = os.environ.get("CUDA_HOME")
    path = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    path = path or "/usr/local/cuda/bin/nvcc"
    if not Path(path).exists():
        raise LeftOut(
            f"no nvcc at {path}" if home else "no nvcc in PATH, and CUDA_HOME is not set",
            f"install the CUDA {major} toolkit (torch {torch_version} is built for CUDA "
            f"{torch_cuda}) and set CUDA_HOME to it",
        )
    nvcc = Nvcc(path, visible)
    if nvcc.version.split(".")[0] != major:
        raise LeftOut(
            f"{path} is CUDA {nvcc.version}, but torch {torch_version} is built for CUDA "
            f"{torch_cuda}",
            f"set CUDA_HOME to a CUDA {major} toolkit, or install a torch built for CUDA "
            f"{nvcc.version}",
        )
    if not nvcc.architectures():
        raise LeftOut(
            f"{path} (CUDA {nvcc.version}) knows none of the architectures "
            f"{', '.join(nvcc.wanted)}",
            "set CUDA_HOME to another toolkit, or TORCH_CUDA_ARCH_LIST to what this one knows",
        )
    return nvcc


def jobs() -> int:
    """How many compilers at once: one per processor, as far as free memory goes."""
    try:
        processors = len(os.sched_getaffinity(0))
        memory = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return max(1, min(processors, int(memory[1]) * 1024 // BYTES_PER_JOB))
    except (AttributeError, OSError, TypeError):  # not Linux
        return max(1, (os.cpu_count() or 1) // 2)
