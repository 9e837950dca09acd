"""The contents of wheels and sdists, and the requirements of the package."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import build_backend
import discfused
from installs import ROOT, copy_of_the_sources, executable, training_step

pytestmark = pytest.mark.usefixtures("no_variables")


def build(hook: str, folder: Path, choice: str) -> subprocess.CompletedProcess:
    """Runs a hook of the backend as pip does without isolation, on a copy of the sources."""
    if int(build_backend.setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools >= 77")
    sources = copy_of_the_sources(folder)
    script = f"import build_backend; build_backend.{hook}({str(folder)!r})"
    variables = {"PYTHONPATH": str(sources / "build_tools"), "DISCFUSED_BUILD": choice}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=sources,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def built(hook: str, folder: Path, choice: str) -> Path:
    run = build(hook, folder, choice)
    assert run.returncode == 0, run.stdout + run.stderr
    (archive,) = (path for path in folder.iterdir() if path.suffix in (".whl", ".gz"))
    return archive


def unpacked(wheel: Path) -> tuple[Path, dict]:
    """Unpacks a wheel. Returns the folder and the record of the build."""
    site = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site, json.loads((site / "discfused/_build.json").read_text())


def test_the_version_is_one_number():
    version = discfused.__version__
    assert importlib.metadata.version("discfused") == version
    # Not dynamic: uv compiles for the torch of a project only where it needs no build to know it.
    assert f'\nversion = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == version


def test_nothing_can_replace_the_torch_that_is_installed():
    required = importlib.metadata.requires("discfused")
    assert [line for line in required if "extra ==" not in line] == ["torch>=2.6"]
    for line in required:
        assert re.match(r"(torchvision|torchaudio|triton)", line) is None, line


def test_the_pure_wheel(tmp_path):
    wheel = built("build_wheel", tmp_path, "none")
    assert wheel.name.endswith("-py3-none-any.whl")
    site, record = unpacked(wheel)
    names = {str(path.relative_to(site)) for path in site.rglob("*.*")}
    assert {
        "discfused/backends/_library.py",
        "discfused/inspection/report.html.jinja",
        "discfused/recipes/digits.yaml",
        "discfused/recipes/caltech101_split.json",
    } <= names
    assert not [name for name in names if not name.startswith("discfused")]
    assert not [name for name in names if name.startswith("discfused/_C")]
    assert record["built"] == []
    assert "DISCFUSED_BUILD=none" in record["left_out"]["cpu"]["reason"]


def test_the_wheel_without_a_compiler(tmp_path, no_compiler):
    wheel = built("build_wheel", tmp_path, "auto")
    assert wheel.name.endswith("-py3-none-any.whl")
    _, record = unpacked(wheel)
    for part in ("cpu", "cuda"):
        assert "/nonexistent/c++" in record["left_out"][part]["reason"]
        assert "install GCC" in record["left_out"][part]["fix"]


@pytest.mark.parametrize("choice", ["auto", "cpu"])
def test_sources_that_do_not_compile(tmp_path, monkeypatch, choice):
    probe_only = 'case "$*" in *-dM*) exec c++ "$@";; *) exit 1;; esac'
    monkeypatch.setenv("CXX", executable(tmp_path / "bin/c++", probe_only))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    if choice == "cpu":  # asked for by name
        run = build("build_wheel", tmp_path, choice)
        assert run.returncode != 0
        assert "DISCFUSED_BUILD is 'cpu', but compiling the cpu kernels with" in run.stderr
        return
    site, _ = unpacked(built("build_wheel", tmp_path, choice))
    _, why, warned = training_step(site)
    assert "compiling the cpu kernels" in why and "pip install --verbose" in why
    assert len(warned) == 1


def test_clang_names_the_functions_of_torch_as_gcc_does(tmp_path, monkeypatch):
    names = {"GNUC": 4, "clang": 1, "clang_major": 19, "clang_minor": 1}
    macros = "\n".join(f"#define __{name}__ {value}" for name, value in names.items())
    log = tmp_path / "log"
    script = f"case \"$*\" in *-dM*) echo '{macros}';; *) echo \"$@\" >> '{log}'; exit 1;; esac"
    monkeypatch.setenv("CXX", executable(tmp_path / "bin/c++", script))
    assert build("build_wheel", tmp_path, "cpu").returncode != 0
    assert "-fclang-abi-compat=17" in log.read_text().splitlines()[-1].split()


def test_the_sdist_holds_what_the_build_and_the_tests_need(tmp_path):
    sdist = built("build_sdist", tmp_path, "cuda")  # compiles nothing, so can always be made
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in ("build_tools", "csrc", "discfused", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                assert str(path.relative_to(ROOT)) in packed
    assert {"setup.py", "pyproject.toml", "conftest.py", "LICENSE", "README.md"} <= packed
    assert "discfused/inspection/report.html.jinja" in packed


@pytest.mark.slow
def test_the_compiled_wheel(tmp_path, monkeypatch):
    for name in ("CFLAGS", "CXXFLAGS"):
        monkeypatch.setenv(name, "-ffast-math -std=c++14 -Wall -Wextra -Werror")
    monkeypatch.setenv("LDFLAGS", "-Ofast")
    wheel = built("build_wheel", tmp_path, "cpu")
    assert not wheel.name.endswith("-any.whl")
    site, record = unpacked(wheel)
    assert record["built"] == ["cpu"]
    assert record["torch"] == torch.__version__
    assert training_step(site)[1:] == (None, [])
    # Code that is linked for fast math makes a process lose such numbers.
    script = "import torch, discfused._C; assert torch.tensor(1e-40) * 1 > 0"
    subprocess.run([sys.executable, "-c", script], cwd=site, check=True)
