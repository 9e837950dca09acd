import os
import subprocess
import sys

import pytest
import torch

from discfused import backends


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unresolved():
    """Clears the cached choice of a backend, which tests change."""
    backends._resolved.cache_clear()
    yield
    backends._resolved.cache_clear()


def _skip_if_unavailable(name: str) -> str:
    if name != "reference":
        why = backends.get(name).unavailable()
        if why is not None:
            pytest.skip(f"backend {name!r} cannot run here: {why}")
    return name


@pytest.fixture(params=["reference", "cpu"])
def backend(request) -> str:
    """Every backend for CPU tensors, with the reference."""
    return _skip_if_unavailable(request.param)


@pytest.fixture(params=["cpu"])
def fused_backend(request) -> str:
    """Every backend for CPU tensors except the reference."""
    return _skip_if_unavailable(request.param)


@pytest.fixture
def process_group(tmp_path):
    """A process group with one process."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def python(tmp_path):
    """Runs code in a new process, in a folder of its own. Returns what it printed."""

    def run(code: str, *arguments: str, **variables: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, **variables},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture
def nothing_compiled():
    """Code that another test compiled is not used again, nor is that of this one."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def no_variables(monkeypatch):
    """Unsets the environment variables that a build reads."""
    for name in ("DISCFUSED_BUILD", "CXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "UV"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_compiler(no_variables, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
