"""What the tests of building and installing share."""

import sysconfig
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
ABI = sysconfig.get_config_var("SOABI")

# In an installed package: prints its file, why its kernels do not load, and its warnings.
TRAINING_STEP = """
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


def fake_torch(version="2.9.0+cu130", cuda="13.0"):
    return SimpleNamespace(__version__=version, version=SimpleNamespace(cuda=cuda, hip=None))


def executable(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)
