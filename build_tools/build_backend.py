"""The PEP 517 backend: setuptools, and the search for the torch to compile against.

A library compiled against one release of torch does not run with another, so it must be compiled
against the torch of the environment it is installed into. But pip and uv build in an isolated
environment, which has only what the build requires.

pip builds with the interpreter of the target. If the target has a torch, the build requires none
and imports that one. If not, it requires the `torch` that the install will bring. Others (uv,
python -m build) build with an interpreter of their own. Nothing is compiled there, because it could
be for the wrong torch.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import setuptools
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that are not redefined here)

import build_plan
from build_plan import LeftOut

OLDEST_TORCH = "2.6"  # as in pyproject.toml


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    try:
        if build_plan.requested() == "none":
            return []
        build_plan.find_compiler()  # without one, torch would be fetched for nothing
        return [] if target_torch() else [f"torch>={OLDEST_TORCH}"]
    except LeftOut:
        return []  # setup.py comes to the same reason, and keeps it


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    # setuptools would pack what an earlier build left there, such as a library for another torch.
    for leftover in [*Path("build").glob("lib*"), *Path("build").glob("bdist*")]:
        shutil.rmtree(leftover)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def import_torch() -> ModuleType:
    """The torch to compile against: the build environment's own, else the target's."""
    if importlib.util.find_spec("torch") is None and (found := target_torch()):
        sys.path += found.path  # at the end: the build's own setuptools comes first
    try:
        import torch
    except Exception as error:
        raise LeftOut(
            f"importing torch failed ({type(error).__name__}: {error})",
            "repair it until `python -c 'import torch'` works, then install discfused again",
        ) from error
    if not _recent(torch.__version__):
        raise LeftOut(f"torch is {torch.__version__}, expected >= {OLDEST_TORCH}", "upgrade torch")
    return torch


class Torch(NamedTuple):
    version: str
    path: list[str]  # the folders from which to import it, and what it needs


def target_torch() -> Torch | None:
    """The torch of the environment that discfused will be installed into, if it has one."""
    found = _ask_interpreter()
    if found:
        return found if _recent(found.version) else None
    # pip lays its build requirements over the target environment. Here they are in the environment
    # itself, so it was made for the build, or is a target without torch and without isolation.
    if Path(setuptools.__file__).is_relative_to(sys.prefix):
        raise LeftOut(
            "the environment of the build has no torch, and an isolated build by uv or "
            "`python -m build` cannot see which torch discfused will run with",
            "install torch, 'setuptools>=77,<82' and ninja, then run "
            "`uv pip install --no-build-isolation .` (with pip: `pip install .`); for a project of "
            "uv see docs/install.md",
        )
    return None


def _recent(version: str) -> bool:
    major, minor = map(int, re.findall(r"\d+", version)[:2])
    return (major, minor) >= tuple(map(int, OLDEST_TORCH.split(".")))


def _ask_interpreter() -> Torch | None:
    """What this interpreter would import if it ran outside the build.

    pip isolates by environment variables, which -E ignores: what remains is the target with its
    user site and all that it inherits.
    """
    question = (
        "import importlib.metadata, json, sys; print(json.dumps([sys.path[1:],"
        "[found.version for found in importlib.metadata.distributions(name='torch')]]))"
    )
    command = [sys.executable, "-E", "-c", question]
    # -c imports from the current folder, too: take one that holds no package.
    answer = subprocess.check_output(command, text=True, cwd=Path(sys.executable).parent)
    path, versions = json.loads(answer.splitlines()[-1])  # a sitecustomize may print, too
    return Torch(versions[0], path) if versions else None
