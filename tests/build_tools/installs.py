"""Helpers for the tests of builds and installs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]

_TRAINING_STEP = """
import json, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import discfused
    for _ in range(2):
        x = torch.randn(8, 4, requires_grad=True)
        discfused.fused_disc_loss(x, torch.arange(8) % 4, x).backward()
    assert x.grad.isfinite().all()
from discfused.backends import _library
try:
    _library.load()
    why = None
except _library.LibraryUnavailable as error:
    why = str(error)
warned = [str(w.message) for w in caught if "discfused" in str(w.message)]
print(json.dumps([discfused.__file__, why, warned]))
"""


def copy_of_the_sources(folder: Path) -> Path:
    generated = shutil.ignore_patterns(".*", "build", "*.egg-info", "_C*", "_build.json")
    return Path(shutil.copytree(ROOT, folder / "sources", ignore=generated))


def training_step(site: Path, python: str = "") -> tuple[Path, str | None, list[str]]:
    """Trains in a new process, with the package in the folder `site`, or with the package that is
    installed for `python`. Returns the path of the imported package, the reason why its kernels do
    not load, and its warnings."""
    path = "" if python else str(site)
    run = subprocess.run(
        [python or sys.executable, "-c", _TRAINING_STEP],
        cwd=site,
        env={**os.environ, "PYTHONPATH": path, "DISCFUSED_BACKEND": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    imported, why, warned = json.loads(run.stdout.splitlines()[-1])
    return Path(imported), why, warned


def fake_torch(gpus=()):
    """A fake torch for CUDA 13 that reports GPUs with these capabilities."""
    return SimpleNamespace(
        __version__="2.9.0+cu130",
        version=SimpleNamespace(cuda="13.0"),
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_capability=lambda index: gpus[index],
        ),
    )


def executable(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)
