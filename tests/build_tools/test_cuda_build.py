"""The CUDA kernels compiled for every architecture, without a GPU. backends/test_gpu.py runs them
on one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import build_plan
from benchmarks import sass
from discfused.backends import _library

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
KERNELS = {  # by source: names, and for how many dtypes
    "rows": {"compare_kernel": 2, "merge_kernel": 2},
    "table": {"table_kernel": 4, "fold_kernel": 2, "soft_table_kernel": 4},
    "terms": {
        "totals_kernel": 2, "features_kernel": 2, "slots_kernel": 2, "finish_kernel": 2,
    },
    "gradient": {"gradient_kernel": 4, "soft_gradient_kernel": 4},
}  # fmt: skip
KERNEL = re.compile(r"\d([a-z_]+_kernel)I")
THREADS = 256  # kThreads
# Loads that are on their way before the first is used, in loops that must stream. The others read
# labels, or are products, which are bound by arithmetic.
LOADS = {
    "table_kernel": 16, "gradient_kernel": 16, "fold_kernel": 16, "totals_kernel": 16,
    "features_kernel": 8, "slots_kernel": 16, "finish_kernel": 8,
}  # fmt: skip
ENOUGH = 18_000  # bytes on their way on a multiprocessor: 3.35 TB/s x 0.7 microseconds / 132


def find_nvcc() -> build_plan.Nvcc:
    """The nvcc of a build. Any torch will do, because kernels compile without torch."""
    try:
        sass.find_cuobjdump()
        return build_plan.find_cuda("cuda", torch.__version__, torch.version.cuda or "13.0")
    except (build_plan.LeftOut, FileNotFoundError) as why:
        pytest.skip(str(why))


def code(names: list[str]) -> set[str]:
    return {"sm_" + name.removesuffix("+PTX").replace(".", "") for name in names}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_for_all_architectures_without_spills_or_serial_loads(
    source, tmp_path, monkeypatch
):
    from torch.utils.cpp_extension import include_paths

    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    nvcc, target = find_nvcc(), tmp_path / "kernels.o"
    includes = [f"-I{ROOT / 'csrc'}", *(f"-I{path}" for path in include_paths())]
    subprocess.run(
        [nvcc.path, "-O3", "-std=c++17", *includes, *nvcc.architecture_flags(), "-c", str(source),
         "-o", str(target)],
        check=True,
    )  # fmt: skip
    for architecture in code(nvcc.architectures()):
        found = sass.codes(target, THREADS, "-arch", architecture)
        names = [KERNEL.search(name)[1] for name in found]
        assert {name: names.count(name) for name in names} == KERNELS[source.stem], architecture
        for name, use in zip(names, found.values(), strict=True):
            where = f"{name} on {architecture}: {use}"
            assert use.spilled == 0, where
            assert use.registers <= 128, where  # two blocks on a multiprocessor
            assert use.shared <= 48 * 1024, where
            assert use.loads >= LOADS.get(name, 0), where
            assert use.bytes_in_flight >= ENOUGH or name not in LOADS, where
    newest = nvcc.architectures()[-1].removesuffix("+PTX").replace(".", "")
    assert f"sm_{newest}.ptx" in sass.cuobjdump("--list-ptx", str(target))


def test_no_source_is_forgotten():
    assert set(KERNELS) == {source.stem for source in SOURCES}


def check_binaries(record: dict, folder: Path) -> None:
    """Checks that the library has code for exactly the architectures in the record."""
    listed = sass.cuobjdump("--list-elf", str(folder / record["library"]))
    assert set(re.findall(r"\.(sm_\w+)\.cubin", listed)) == code(record["cuda_architectures"])


def test_the_installed_library_is_what_it_says():
    record = _library.build_record()
    if "cuda" not in record.get("built", []):
        pytest.skip("the installed discfused has no CUDA kernels")
    if not all(name[0].isdigit() for name in record["cuda_architectures"]):
        pytest.skip("it was built for an architecture by name, such as Hopper")
    check_binaries(record, _library._PACKAGE)


@pytest.mark.slow
def test_the_library_with_both_parts(tmp_path, monkeypatch):
    """The library of `pip install .` links and loads, and reports its architectures.

    It is built for two architectures, which is faster than for all.
    """
    from test_packaging import built

    if torch.version.cuda is None:
        pytest.skip(f"torch {torch.__version__} is not a CUDA build: nothing to link with")
    find_nvcc()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    wheel = built("build_wheel", tmp_path, "cuda")
    site = tmp_path / "installed"
    shutil.unpack_archive(wheel, site, "zip")
    record = json.loads((site / "discfused/_build.json").read_text())
    assert record["built"] == ["cpu", "cuda"]
    assert record["cuda_architectures"] == ["8.0", "9.0+PTX"]
    check_binaries(record, site / "discfused")
    script = (
        "import torch; from discfused import backends; backends.get('cpu').unavailable(); "
        "torch.ops.discfused.cuda_rows_flagged; "
        "assert torch._C._dispatch_has_kernel_for_dispatch_key('discfused::cuda_terms', 'CUDA'); "
        "print(*backends.status(), sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("cuda: "))
    if torch.cuda.is_available():
        assert "compiled for torch" in line and "8.0 9.0+PTX" in line
    else:
        assert "PyTorch sees no GPU" in line


# ---------------------------------------------------------------- the GPU at hand


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 6), True),  # binaries run on later minors ...
        ("8.6", (8, 0), False),
        ("8.9", (9, 0), False),  # ... of the same major
        ("9.0a", (9, 0), True),
        ("12.0+PTX", (12, 1), True),
        ("12.0+PTX", (13, 0), True),  # PTX on every later GPU
        ("12.0+PTX", (10, 0), False),
        ("Hopper", (9, 0), True),
    ],
)
def test_which_gpus_an_architecture_serves(architecture, capability, runs):
    assert _library._runs(architecture, capability) == runs


@pytest.fixture
def installed(monkeypatch):
    """Fakes a library with CUDA kernels for some architectures, and a GPU."""
    record = {
        "built": ["cpu", "cuda"], "torch": "2.11.0+cu130", "cuda": "13.0",
        "cuda_architectures": ["8.0", "9.0+PTX"],
    }  # fmt: skip
    monkeypatch.setattr(_library, "build_record", lambda: record)
    monkeypatch.setattr(_library, "load", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    _library.cuda_missing.cache_clear()
    yield record
    _library.cuda_missing.cache_clear()


def test_a_gpu_that_was_not_built_for(installed):
    why = _library.cuda_missing()
    assert "cuda:0 (a GPU) has architecture 7.5" in why
    assert "compiled for 8.0 9.0+PTX: set TORCH_CUDA_ARCH_LIST=7.5 and run `pip install" in why


def test_a_gpu_that_was_built_for(installed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert _library.cuda_missing() is None
    assert _library.built_for("cuda") == (
        ", compiled for torch 2.11.0+cu130, CUDA 13.0, architectures 8.0 9.0+PTX"
    )


def test_why_nothing_was_compiled_is_kept(installed):
    installed["built"] = ["cpu"]
    installed["left_out"] = {"cuda": {"reason": "no nvcc in PATH", "fix": "install one"}}
    assert _library.cuda_missing() == "not compiled, because no nvcc in PATH: install one"
    assert _library.built_for("cuda") == ""
