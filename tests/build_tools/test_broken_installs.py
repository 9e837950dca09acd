"""Broken installs still train, with one warning that names the command to run."""

import hashlib
import json
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import discfused
from discfused.backends import _library
from installs import training_step

LIBRARY = "_C" + EXTENSION_SUFFIXES[0]
RECORD = {
    "built": ["cpu"],
    "left_out": {},
    "torch": str(torch.__version__),
    "library": LIBRARY,
}


def unresolved_symbol(path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    source = "void gone(void); void *PyInit__C(void) { gone(); return 0; }"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)


BROKEN = {
    "sources": (None, None, "imported from the sources in .* run `pip install .`"),
    "pure": (
        {"built": [], "left_out": {"cpu": {"reason": "no compiler", "fix": "get one"}}},
        None,
        "not compiled, because no compiler: get one",
    ),
    "other torch": (
        {"torch": "2.6.0+cu118"},
        b"",
        "torch 2.6.0.cu118, but this is torch .*: run `pip install --force",
    ),
    "other python": (
        {"library": "_C.cpython-39-darwin.so"},
        b"",
        "_C.cpython-39-darwin.so is not for this Python, which loads .* run `pip install",
    ),
    "missing": ({}, None, f"{LIBRARY} is missing: run `pip install"),
    "truncated": ({"sha256": "of the whole"}, b"\x7fELF", "is not the file that was built: run"),
    "foreign": ({}, b"MZ, from Windows", "loading the compiled kernels failed .ImportError.*: run"),
    "unresolved symbol": ({}, unresolved_symbol, "undefined symbol: gone"),
    "damaged record": ({"torch": None, "built": None}, b"", "failed .TypeError.*: run"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_install_still_trains(case, tmp_path):
    changes, content, expected = BROKEN[case]
    package = tmp_path / "discfused"
    installed = Path(discfused.__file__).parent
    shutil.copytree(installed, package, ignore=shutil.ignore_patterns("_C*", "_build.json"))
    library = package / LIBRARY
    if callable(content):
        content(library)
    elif content is not None:
        library.write_bytes(content)
    if changes is not None:
        record = RECORD | changes
        if library.exists():
            record = {"sha256": hashlib.sha256(library.read_bytes()).hexdigest()} | record
        (package / "_build.json").write_text(json.dumps(record))

    imported, why, warned = training_step(tmp_path)
    assert imported.is_relative_to(tmp_path)
    assert len(warned) == 1
    assert why in warned[0]
    assert re.search(expected, why), why


def test_first_calls_of_several_threads_load_once(monkeypatch):
    def check(record):
        checked.append(record)
        time.sleep(0.05)  # time for the other threads to enter
        raise _library.LibraryUnavailable("gone", "mend it")

    def load(_):
        with pytest.raises(_library.LibraryUnavailable, match="gone: mend it"):
            _library.load()

    checked = []
    monkeypatch.setattr(_library, "_check", check)
    _library._load_once.cache_clear()
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(load, range(4)))
    finally:
        _library._load_once.cache_clear()
    assert len(checked) == 1
