"""docs/gpu-model.md shows the computed cost of the current kernels."""

import os
import re
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing can be compiled", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from benchmarks import gpu_model

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs/gpu-model.md").read_text()
FIX = "stale: python -m benchmarks.gpu_model > docs/gpu-model.md"


@pytest.mark.parametrize("case", gpu_model.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_launches_and_bytes_are_those_of_the_code(case, backend):
    """All but what only the compilers know, which changes with their releases."""
    title = f"{case.N} x {case.D}, {case.C} classes, {case.dtype}: {backend}"
    (section,) = [part for part in DOCUMENT.split("\n## ") if part.startswith(title)]
    stages = getattr(gpu_model, f"of_{backend}")(case)
    expected = [f"| {' | '.join(gpu_model.work(one))} |" for stage in stages for one in stage]
    shown = [line for line in section.splitlines() if line.startswith("| `")]
    assert len(shown) == len(expected)
    assert all(map(str.startswith, shown, expected)), FIX
    assert section.strip().endswith(gpu_model.sums(case, stages)), FIX


def test_every_kernel_of_cuda_is_there():
    _, table = DOCUMENT.split("## Every kernel: cuda")
    sources = "".join(path.read_text() for path in (ROOT / "csrc/cuda").glob("*.cu"))
    kernels = set(re.findall(r"__global__ .*?(\w+_kernel)\(", sources, re.DOTALL))
    assert set(re.findall(r"`(\w+)`", table)) == kernels, FIX


def test_nvcc_is_asked_for():
    with pytest.raises(SystemExit, match="no nonesuch in PATH: install the CUDA toolkit"):
        gpu_model.main(["--nvcc", "nonesuch"])


def test_nothing_is_called_measured():
    assert DOCUMENT.startswith(gpu_model.HEAD)
    assert DOCUMENT.count("measured") == DOCUMENT.count("never measured") == 1
    for line in re.findall(r"^\|.*(?:bytes|time|registers).*$", DOCUMENT, re.MULTILINE):
        assert "computed" in line, line
