"""Loads discfused._C, the compiled kernels, or explains why it cannot be loaded.

Loading it registers its kernels with PyTorch; the module itself is empty. A library compiled
against another torch can crash the process or compute wrong numbers. So it is checked before it is
loaded, against the record that the build wrote to _build.json.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import json
import re
import shlex
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from discfused import _commit

_PACKAGE = Path(__file__).resolve().parents[1]
_loading = threading.Lock()


class LibraryUnavailable(RuntimeError):
    """The compiled kernels cannot be used: the reason and the fix."""

    def __init__(self, reason: str, fix: str):
        super().__init__(f"{reason}: {fix}")
        self.reason = reason
        self.fix = fix


def load() -> ModuleType:
    """discfused._C. Raises only LibraryUnavailable. The result is cached."""
    with _loading:  # the cache does not stop several threads from loading it at once
        library = _load_once()
    if isinstance(library, LibraryUnavailable):
        raise LibraryUnavailable(library.reason, library.fix)
    return library


def build_record() -> dict[str, Any]:
    """The record of the build (BuildRecord in setup.py); empty if there is none."""
    try:
        record: dict[str, Any] = json.loads((_PACKAGE / "_build.json").read_text("utf-8"))
        return record
    except (OSError, ValueError):
        return {}


def built_for(part: str) -> str:
    """Versions and architectures of a compiled part, as the end of a sentence; or ""."""
    record = build_record()
    if part not in record.get("built", ()):
        return ""
    text = f", compiled for torch {record['torch']}"
    if part == "cuda":
        text += f", CUDA {record['cuda']}, architectures {' '.join(record['cuda_architectures'])}"
    return text


def commit() -> str | None:
    """The commit of the running sources; None if neither git nor the build record has it."""
    return _commit.of_checkout(_PACKAGE) or build_record().get("commit")


@functools.cache
def cuda_missing() -> str | None:
    """None if the CUDA kernels can run here, else the reason and the fix."""
    try:
        load()
    except LibraryUnavailable as unavailable:
        return str(unavailable)
    record = build_record()
    if "cuda" not in record["built"]:
        why = record["left_out"]["cuda"]
        return f"not compiled, because {why['reason']}: {why['fix']}"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU: install a driver, or use the CPU"
    built = record["cuda_architectures"]
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not any(_runs(name, capability) for name in built):
            present = "{}.{}".format(*capability)
            return (
                f"cuda:{index} ({torch.cuda.get_device_name(index)}) has architecture {present}, "
                f"but the kernels are compiled for {' '.join(built)}: set "
                f"TORCH_CUDA_ARCH_LIST={present} and {_compile_again()}, or hide that GPU with "
                "CUDA_VISIBLE_DEVICES"
            )
    return None


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture in torch's notation ("9.0", "12.0+PTX") runs on a GPU."""
    found = re.fullmatch(r"(\d+)\.(\d+)([a-z]?)(\+PTX)?", architecture)
    if found is None:
        return True  # a name that torch knows, such as "Hopper": the user set it
    built = int(found[1]), int(found[2])
    if found[3]:  # 9.0a runs on this architecture only
        return built == capability
    within_major = built[0] == capability[0] and built <= capability
    return within_major or (found[4] is not None and built <= capability)


@functools.cache
def _load_once() -> ModuleType | LibraryUnavailable:
    try:
        _check(build_record())
        return importlib.import_module("discfused._C")
    except LibraryUnavailable as why:
        return why
    except Exception as error:  # for example a missing symbol
        reason = f"loading the compiled kernels failed ({type(error).__name__}: {error})"
        return LibraryUnavailable(reason, _compile_again())


def _check(record: dict[str, Any]) -> None:
    """Raises if loading the library would fail or crash."""
    if not record:
        raise LibraryUnavailable(
            f"nothing was compiled: discfused is imported from the sources in {_PACKAGE.parent}",
            "run `pip install .` there and start Python in another folder, or run "
            "`pip install -e .` there",
        )
    if "cpu" not in record["built"]:
        why = record["left_out"]["cpu"]
        raise LibraryUnavailable(f"not compiled, because {why['reason']}", why["fix"])
    if record["torch"] != (now := str(torch.__version__)):
        reason = f"compiled for torch {record['torch']}, but this is torch {now}"
        raise LibraryUnavailable(reason, _compile_again())
    if not record["library"].endswith(EXTENSION_SUFFIXES[0]):
        reason = f"{record['library']} is not for this Python, which loads *{EXTENSION_SUFFIXES[0]}"
        raise LibraryUnavailable(reason, _compile_again())
    library = _PACKAGE / record["library"]
    if not library.exists():
        raise LibraryUnavailable(f"{library} is missing", _compile_again())
    # Loading a truncated file kills the process.
    if hashlib.sha256(library.read_bytes()).hexdigest() != record["sha256"]:
        raise LibraryUnavailable(f"{library} is not the file that was built", _compile_again())


def _compile_again() -> str:
    """The command that compiles for the installed torch."""
    # Without --no-cache-dir, pip reuses wheels that it built from an archive for another torch.
    command = "pip install --force-reinstall --no-deps --no-cache-dir"
    try:
        installed = importlib.metadata.distribution("discfused")
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        if (installed.read_text("INSTALLER") or "").strip() == "uv":
            command = f"uv {command} --no-build-isolation"  # with isolation uv compiles nothing
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {}
    return f"run `{command} {_source(origin)}`"


def _source(origin: dict[str, Any]) -> str:
    """The argument for pip, from the record of the installation (PEP 610)."""
    url: str = origin.get("url", "discfused")
    if "vcs_info" in origin:
        return "{vcs}+{url}@{commit_id}".format(url=url, **origin["vcs_info"])
    if "dir_info" in origin:
        folder = shlex.quote(unquote(urlsplit(url).path))
        return f"-e {folder}" if origin["dir_info"].get("editable") else folder
    if url.endswith(".whl"):  # a second installation would change nothing
        return "FOLDER_OF_THE_SOURCES"
    return url
