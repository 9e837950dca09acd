"""The Triton backend without a GPU: under Triton's interpreter, in a process of its own.

Triton decides when it is imported whether it interprets, and torch.compile imports it, too: a
variable set within this process would come too late, or reach other tests.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import discfused
from discfused import backends
from discfused.backends import bad_labels, triton_runtime

HERE = Path(__file__).parent


def test_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
         *(str(HERE / f"test_triton_{name}.py") for name in ("interpreter", "stages"))],
        capture_output=True, text=True, env=environment, cwd=HERE.parents[1], timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) > 180, run.stdout[-2000:]


@pytest.fixture
def without_cache():
    triton_runtime.missing.cache_clear()
    yield
    triton_runtime.missing.cache_clear()


def reason(interpreted=False) -> str | None:
    return triton_runtime.missing(interpreted)


def test_without_triton_it_says_what_to_install(monkeypatch, without_cache):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in reason()
    with pytest.raises(RuntimeError, match="pip install triton"):
        discfused.disc_terms(torch.rand(4, 2), torch.zeros(4).long(), 2, backend="triton")


@pytest.mark.parametrize("name", ["activation", "impurity"])
def test_warmup_of_what_is_not_there(name):
    with pytest.raises(ValueError, match=f"{name} is 'tanh', expected one of"):
        discfused.warmup([(4, 2)], **{name: "tanh"})


def test_without_a_gpu_it_says_so(monkeypatch, without_cache):
    monkeypatch.setitem(sys.modules, "triton", object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in reason()
    assert reason(interpreted=True) is None


def test_without_a_compiler_it_names_one(monkeypatch, without_cache):
    monkeypatch.setitem(sys.modules, "triton", object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(triton_runtime.shutil, "which", lambda name: None)
    assert "install gcc" in reason()


def test_without_python_headers_it_names_the_package(monkeypatch, without_cache):
    monkeypatch.setitem(sys.modules, "triton", object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton_runtime.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(triton_runtime.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert "python3-dev" in reason()


def test_it_is_what_cuda_tensors_get(monkeypatch):
    backend = backends.get("triton")
    monkeypatch.setattr(type(backend), "unavailable", lambda self: None)
    assert backends.preferred("cuda") == ("triton", [])
    monkeypatch.setattr(type(backend), "unavailable", lambda self: "no GPU here")
    monkeypatch.setattr(type(backends.get("cuda")), "unavailable", lambda self: None)
    assert backends.preferred("cuda") == ("cuda", ["triton: no GPU here"])


def test_a_report_of_bad_labels_names_one_if_it_can(monkeypatch):
    labels = bad_labels.BadLabels(torch.device("cpu"))
    target = torch.tensor([0, 7, 1])
    message = "2 labels were out of range in a batch on cpu"
    labels.watch(target, 3, -100)
    labels.flag[0] = 1
    with pytest.raises(IndexError, match=r"target\[1\] is 7, .* in a batch on cpu"):
        labels.check()
    labels.check()
    labels.flag[0] = 2  # of others than that batch
    with pytest.raises(IndexError, match=message):
        labels.check()

    def overwritten(*arguments, **options):
        raise RuntimeError("accessing tensor output of CUDAGraphs that has been overwritten")

    monkeypatch.setattr(bad_labels._batch, "check_labels", overwritten)
    labels.watch(target, 3, -100)
    labels.flag[0] = 2
    with pytest.raises(IndexError, match=message):
        labels.check()


def test_bad_labels_of_the_last_batch_are_told_when_python_ends():
    code = (
        "import torch; from discfused.backends.bad_labels import bad_labels\n"
        "bad_labels(torch.device('cpu')).flag[0] = {}"
    )
    for count in (0, 3):
        run = subprocess.run(
            [sys.executable, "-c", code.format(count)], capture_output=True, text=True, cwd="/"
        )
        assert run.returncode == 0
        assert ("3 labels were out of range in a batch on cpu" in run.stderr) == (count == 3)


def test_launches_are_inside_the_device_guard(monkeypatch):
    """The guard of a tensor that is on another device than the current one."""
    entered = []

    class Guard:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    class OnAnotherDevice:
        is_cuda = True
        device = torch.device("cuda:1")

    monkeypatch.setattr(torch.cuda, "device", Guard)
    with triton_runtime.on(OnAnotherDevice()):
        assert entered == [torch.device("cuda:1")]
