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
def no_variables(monkeypatch):
    """Unsets the environment variables that a build reads."""
    for name in ("DISCFUSED_BUILD", "CXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "UV"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_compiler(no_variables, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
