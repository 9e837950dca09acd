"""Which torch a build asks for, and compiles against: that of the environment it is made for."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import build_backend
import build_plan
from build_backend import Torch
from build_plan import LeftOut
from installs import ROOT, executable

pytestmark = pytest.mark.usefixtures("no_variables")


@pytest.fixture
def targets(monkeypatch):
    """The target environment as the frontend's interpreter and as uv see it."""
    seen = SimpleNamespace(interpreter=None, uv=None)

    def ask_uv():
        if isinstance(seen.uv, LeftOut):
            raise seen.uv
        return seen.uv

    monkeypatch.setattr(build_backend, "_ask_interpreter", lambda: seen.interpreter)
    monkeypatch.setattr(build_backend, "_ask_uv", ask_uv)
    monkeypatch.setattr(build_plan, "find_compiler", lambda: "GCC 12.2")
    return seen


@pytest.mark.parametrize("version", ["2.6.0", "2.13.0+cpu", "2.10.0a0+git1", "3.0"])
def test_a_target_with_torch_is_asked_for_no_other(targets, version):
    targets.interpreter = Torch(version, [])
    assert build_backend.get_requires_for_build_wheel() == []


@pytest.mark.parametrize("found", [None, Torch("2.5.1", [])])
def test_a_target_without_a_usable_torch_gets_the_one_that_the_install_brings(targets, found):
    targets.interpreter = targets.uv = found
    required = build_backend.get_requires_for_build_editable()
    assert required == [
        line for line in importlib.metadata.requires("discfused") if "extra" not in line
    ]


def test_a_build_environment_of_its_own_looks_at_the_target(targets, monkeypatch, tmp_path):
    targets.uv = Torch("2.9.0", [])
    monkeypatch.setattr(build_backend.setuptools, "__file__", f"{sys.prefix}/setuptools.py")
    assert build_backend.target_torch() == targets.uv
    # as pip does: the requirements lie over the target, which is then known to have no torch
    monkeypatch.setattr(build_backend.setuptools, "__file__", str(tmp_path / "setuptools.py"))
    assert build_backend.target_torch() is None


def test_an_unknown_target_is_not_compiled_for(targets, monkeypatch):
    targets.uv = LeftOut("the target is unknown", "name it")
    monkeypatch.setattr(build_backend.setuptools, "__file__", f"{sys.prefix}/setuptools.py")
    assert build_backend.get_requires_for_build_wheel() == []
    with pytest.raises(LeftOut, match="unknown"):
        build_backend.target_torch()


def test_torch_is_not_fetched_for_nothing(targets, monkeypatch):
    monkeypatch.setenv("DISCFUSED_BUILD", "none")
    assert build_backend.get_requires_for_build_wheel() == []


def test_torch_is_not_fetched_where_nothing_compiles(monkeypatch, no_compiler):
    monkeypatch.setattr(build_backend, "_ask_interpreter", lambda: None)
    assert build_backend.get_requires_for_build_wheel() == []


def test_the_interpreter_tells_through_pips_isolation(monkeypatch, tmp_path):
    hide = "import sys; sys.path[:] = [entry for entry in sys.path if 'site-packages' not in entry]"
    (tmp_path / "sitecustomize.py").write_text(hide)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    found = build_backend._ask_interpreter()
    assert found.version == importlib.metadata.version("torch")
    assert str(Path(torch.__file__).parents[1]) in found.path


UV = """
case "$*" in
*show*) echo "$VIRTUAL_ENV $*" > {log}; echo Version: 2.9.1; echo Location: /target;;
*) UV=$0 VIRTUAL_ENV=/made/for/the/build {python} -c \
    "import build_backend; print(build_backend._ask_uv())"; exit $?;;
esac
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("arguments", "options"),
    [("install .", ""), ("install -p 3.12 .", " --python=3.12"), ("sync --system x", " --system")],
)
def test_uv_is_asked_in_the_way_it_was_started(tmp_path, arguments, options):
    log = tmp_path / "log"
    uv = executable(tmp_path / "uv", UV.format(log=log, python=sys.executable))
    environment = {**os.environ, "VIRTUAL_ENV": "/target", "PYTHONPATH": str(ROOT / "csrc")}
    run = subprocess.run(
        [uv, "pip", *arguments.split()], capture_output=True, text=True, env=environment
    )
    assert run.stdout.strip() == "Torch(version='2.9.1', path=['/target'])", run.stderr
    assert log.read_text().strip() == f"/target pip show torch{options}"
    run = subprocess.run([uv, "sync"], capture_output=True, text=True, env=environment)
    assert "cannot see which one discfused will run with" in run.stderr
