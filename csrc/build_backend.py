"""The PEP 517 backend: setuptools, and the search for the torch to compile against.

A library compiled against one release of torch does not run with another, so it must be compiled
against the torch of the environment it is installed into. But pip and uv build in an isolated
environment, which shows only what the build asks for. So, when the frontend asks what to install
there, we look at the target: if it has a torch, we ask for none and import that one; if it has
none, we ask for the same `torch` that the install will bring. If the target cannot be known,
nothing is compiled: better a slower install than a library for the wrong torch.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import setuptools
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import build_plan
from build_plan import LeftOut

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "import_torch",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

OLDEST_TORCH = "2.6"  # as in pyproject.toml
WITHOUT_ISOLATION = (
    "install torch, 'setuptools>=77,<82' and ninja first, then discfused with --no-build-isolation"
)


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


class Torch(NamedTuple):
    version: str
    path: list[str]  # the folders from which to import it, and what it needs


def import_torch() -> ModuleType:
    """The torch to compile against: the build environment's own, else the target's."""
    if importlib.util.find_spec("torch") is None:
        found = target_torch()
        if found is None:
            raise LeftOut("torch is not installed", WITHOUT_ISOLATION)
        # At the end: what the build environment has itself, such as setuptools, comes first.
        sys.path += [folder for folder in found.path if folder not in sys.path]
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


def target_torch() -> Torch | None:
    """The torch of the environment that discfused will be installed into, if it has one."""
    found = _ask_interpreter()
    if found is None and Path(setuptools.__file__).is_relative_to(sys.prefix):
        # pip lays its build requirements over the target environment. Here they are in the
        # environment itself, so it was made for the build (uv, python -m build): look elsewhere.
        found = _ask_uv()
    return found if found and _recent(found.version) else None


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


def _ask_uv() -> Torch | None:
    """The torch of the environment that `uv pip install` installs into.

    uv does not tell the build about it: the build gets a VIRTUAL_ENV of its own. On Linux we see
    how uv, our parent, was started; `uv pip show` started in the same way looks at the same place.
    """
    parent = Path("/proc", str(os.getppid()))
    try:
        uv = os.environ["UV"]  # set by uv: where it is
        _, *arguments = _strings(parent / "cmdline")
        environment = dict(entry.split("=", 1) for entry in _strings(parent / "environ"))
        folder = os.readlink(parent / "cwd")
    except (KeyError, OSError):
        arguments = []
    if "pip" not in arguments:  # uv sync, uv build, python -m build, ...
        raise LeftOut(
            "the build has no torch, and cannot see which one discfused will run with",
            WITHOUT_ISOLATION,
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-p", "--python")
    parser.add_argument("-t", "--target")
    parser.add_argument("--prefix")
    parser.add_argument("--system", action="store_true")
    chosen = vars(parser.parse_known_args(arguments)[0])
    options = [f"--{name}" if value is True else f"--{name}={value}"
               for name, value in chosen.items() if value]  # fmt: skip
    show = [uv, "pip", "show", "torch", *options]
    answer = subprocess.run(show, capture_output=True, text=True, env=environment, cwd=folder)
    found = dict(line.split(": ", 1) for line in answer.stdout.splitlines() if ": " in line)
    return Torch(found["Version"], [found["Location"]]) if "Location" in found else None


def _strings(path: Path) -> list[str]:
    """The entries of a file in /proc that separates them by null characters."""
    return [
        entry for entry in path.read_bytes().decode(errors="surrogateescape").split("\0") if entry
    ]
