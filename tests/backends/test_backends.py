"""The choice of the backend, its messages, and backends.status()."""

import pytest
import torch

from discfused import backends, disc_terms
from discfused.backends import ENVIRONMENT_VARIABLE

X, Y = torch.rand(8, 4), torch.arange(8) % 3


class Broken:
    name = "cpu"
    device_type = "cpu"

    def unavailable(self):
        return "it is broken: run `make it whole`"


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(backends._BACKENDS, "cpu", Broken())


def test_falling_back_by_itself_warns_once(broken, recwarn):
    for _ in range(3):
        disc_terms(X, Y, 3)
    assert len(recwarn) == 1
    assert "make it whole" in str(recwarn[0].message)
    assert f"{ENVIRONMENT_VARIABLE}=reference" in str(recwarn[0].message)


def test_an_explicit_name_that_cannot_run_raises_and_quotes_the_status(broken):
    with pytest.raises(RuntimeError) as caught:
        disc_terms(X, Y, 3, backend="cpu")
    assert "backend is 'cpu'" in str(caught.value)
    for line in backends.status():
        assert str(line) in str(caught.value)


def test_a_backend_of_another_device_raises(fused_backend):
    with pytest.raises(RuntimeError, match="features are on meta"):
        backends.resolve("meta", fused_backend)
    assert backends.resolve("meta", None) == "reference"


def test_the_environment_variable_overrides_none_only(monkeypatch, fused_backend):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    assert backends.resolve("cpu", None) == "reference"
    assert backends.resolve("cpu", fused_backend) == fused_backend
    backends._resolved.cache_clear()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "nonsense")
    with pytest.raises(ValueError, match=f"{ENVIRONMENT_VARIABLE} is 'nonsense'"):
        backends.resolve("cpu", None)
    backends._resolved.cache_clear()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert backends.resolve("cpu", None) in backends.NAMES


def test_status_names_every_backend():
    report = {line.name: line for line in backends.status()}
    assert tuple(report) == backends.NAMES
    assert report["reference"].available


# What may be missing on a machine, and must not be missed.
MISSING = ["triton", "matplotlib", "sklearn", "torchvision", "lightning"]

IMPORT = f"""
import sys
for name in {MISSING}:
    sys.modules[name] = None  # import raises ImportError
import warnings
warnings.simplefilter("error")
import torch
before = set(sys.modules)
import discfused
assert not torch.cuda.is_initialized()
assert "torch._dynamo" not in set(sys.modules) - before
x = torch.rand(8, 4, requires_grad=True)
warnings.simplefilter("ignore")
discfused.fused_disc_loss(torch.randn(8, 3), torch.arange(8) % 3, x).backward()
assert x.grad.any()
print("trained")
"""


def test_import_needs_torch_alone(python):
    assert python(IMPORT) == "trained\n"


@pytest.mark.parametrize("how", ["reload", "twice"])
def test_importing_again_is_harmless(python, how):
    again = {
        "reload": "import importlib, discfused; importlib.reload(discfused)",
        "twice": "import sys, discfused; saved = sys.modules.copy()\n"
        "del sys.modules['discfused']; import discfused",
    }[how]
    check = "import torch; discfused.disc_terms(torch.rand(4, 3), torch.arange(4) % 2, 2)"
    python(f"{again}\n{check}")
