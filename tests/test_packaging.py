"""What is packed, and what an install may bring and replace."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import build_backend
import discfused
from installs import ROOT, TRAINING_STEP

pytestmark = pytest.mark.usefixtures("no_variables")


def build(hook: str, folder: Path, choice: str) -> subprocess.CompletedProcess:
    """Runs a hook of the backend as pip does without isolation, on a copy of the sources."""
    if int(build_backend.setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools >= 77")
    sources = folder / "sources"
    generated = shutil.ignore_patterns(".*", "build", "*.egg-info", "_C*", "_build.json")
    shutil.copytree(ROOT, sources, ignore=generated)
    script = f"import build_backend; build_backend.{hook}({str(folder)!r})"
    environment = {
        **os.environ, "PYTHONPATH": str(sources / "csrc"), "DISCFUSED_BUILD": choice
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", script], cwd=sources, env=environment, capture_output=True, text=True
    )


def built(hook: str, folder: Path, choice: str) -> Path:
    run = build(hook, folder, choice)
    assert run.returncode == 0, run.stdout + run.stderr
    (archive,) = (path for path in folder.iterdir() if path.is_file())
    return archive


def test_the_version_is_one_number():
    assert importlib.metadata.version("discfused") == discfused.__version__


def test_nothing_can_replace_the_torch_that_is_installed():
    required = importlib.metadata.requires("discfused")
    assert [line for line in required if "extra ==" not in line] == ["torch>=2.6"]
    for line in required:
        assert re.match(r"(torchvision|torchaudio|triton)", line) is None, line


def test_the_pure_wheel(tmp_path):
    wheel = built("build_wheel", tmp_path, "none")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = json.loads(archive.read("discfused/_build.json"))
    assert "discfused/backends/_library.py" in names
    assert {f"discfused/recipes/{name}" for name in ("digits.yaml", "caltech101_split.json")} <= {
        *names
    }
    assert not [name for name in names if name.startswith(("csrc", "tests", "discfused/_C"))]
    assert record["built"] == []
    assert "DISCFUSED_BUILD=none" in record["left_out"]["cpu"]["reason"]


def test_the_wheel_without_a_compiler(tmp_path, no_compiler):
    wheel = built("build_wheel", tmp_path, "auto")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        record = json.loads(archive.read("discfused/_build.json"))
    for part in ("cpu", "cuda"):
        assert "/nonexistent/c++" in record["left_out"][part]["reason"]
        assert "install GCC" in record["left_out"][part]["fix"]


@pytest.mark.parametrize("choice", ["cpu", "cuda"])
def test_what_was_asked_for_and_is_impossible_ends_the_build(tmp_path, no_compiler, choice):
    run = build("build_wheel", tmp_path, choice)
    assert run.returncode != 0
    assert f"DISCFUSED_BUILD is '{choice}', but the C++ compiler" in run.stderr
    assert "install GCC" in run.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_the_sdist_holds_what_the_build_and_the_tests_need(tmp_path):
    sdist = built("build_sdist", tmp_path, "cuda")  # compiles nothing, so can always be made
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in ("csrc", "discfused", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                assert str(path.relative_to(ROOT)) in packed
    assert {"setup.py", "pyproject.toml", "conftest.py", "LICENSE", "README.md"} <= packed


@pytest.mark.slow
def test_the_compiled_wheel(tmp_path):
    wheel = built("build_wheel", tmp_path, "cpu")
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    record = json.loads((tmp_path / "installed/discfused/_build.json").read_text())
    assert record["built"] == ["cpu"]
    assert record["torch"] == torch.__version__
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "DISCFUSED_BACKEND": ""}
    command = [sys.executable, "-c", TRAINING_STEP]
    output = subprocess.check_output(command, text=True, cwd=tmp_path, env=environment)
    assert json.loads(output.splitlines()[-1])[1:] == [None, []]
