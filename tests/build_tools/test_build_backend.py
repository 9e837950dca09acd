"""The torch that a build requires and compiles against: that of the target environment."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch

import build_backend
import build_plan
from build_backend import Torch
from build_plan import LeftOut

pytestmark = pytest.mark.usefixtures("no_variables")


@pytest.fixture
def build(monkeypatch, tmp_path):
    """A function that fakes the torch of the target and the front end of the build."""

    def make(found: Torch | None, frontend: str = "pip") -> None:
        # pip adds setuptools on top of the target; uv creates an environment with it
        folder = {"pip": str(tmp_path), "uv": sys.prefix}[frontend]
        monkeypatch.setattr(build_backend, "_ask_interpreter", lambda: found)
        monkeypatch.setattr(build_backend.setuptools, "__file__", f"{folder}/setuptools.py")
        monkeypatch.setattr(build_plan, "find_compiler", lambda: "GCC 12.2")

    return make


@pytest.mark.parametrize("version", ["2.6.0", "2.13.0+cpu", "2.10.0a0+git1", "3.0"])
def test_a_target_with_torch_is_asked_for_no_other(build, version):
    build(Torch(version, []))
    assert build_backend.get_requires_for_build_wheel() == []


@pytest.mark.parametrize("found", [None, Torch("2.5.1", [])])
def test_a_target_without_a_usable_torch_gets_the_one_that_the_install_brings(build, found):
    build(found)
    required = build_backend.get_requires_for_build_editable()
    assert required == [
        line for line in importlib.metadata.requires("discfused") if "extra" not in line
    ]


def test_an_unknown_target_is_not_compiled_for(build, monkeypatch):
    build(None, "uv")
    monkeypatch.setattr(build_backend.importlib.util, "find_spec", lambda name: None)
    assert build_backend.get_requires_for_build_wheel() == []
    plan = build_plan.decide("auto", build_backend.import_torch)
    assert plan.parts == []
    assert "uv pip install --no-build-isolation ." in plan.left_out["cpu"].fix
    with pytest.raises(SystemExit, match=r"BUILD is 'cpu', but .* cannot see which torch"):
        build_plan.decide("cpu", build_backend.import_torch)


def test_torch_is_not_fetched_for_nothing(build, monkeypatch):
    build(None)
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


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.5.1", r"torch is 2\.5\.1, expected >= 2\.6"), (None, "importing torch failed")],
)
def test_a_torch_that_cannot_serve(monkeypatch, version, expected):
    if version is None:
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.setattr(build_backend.importlib.util, "find_spec", lambda name: name)
    else:
        monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(LeftOut, match=expected):
        build_backend.import_torch()
