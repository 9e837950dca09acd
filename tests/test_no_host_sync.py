"""Code before the kernels does not wait for a GPU. The tests use fake CUDA tensors.

test_gpu_runtime.py and BANNED in test_triton_sources.py (tests/backends) test the kernels.
"""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cases import RELEASE
from discfused import (
    FusedDiscLoss,
    RunningDiscLoss,
    backends,
    class_histogram,
    disc_terms,
    fused_disc_loss,
)
from models import CLASSES as C
from models import Net

N, D = 8, 12

pytestmark = pytest.mark.skipif(
    RELEASE < (2, 7), reason="this PyTorch asks for a driver to make a fake CUDA tensor"
)


class OnTheGpu(TorchDispatchMode):
    """Fails if a tensor is copied to the host. (Fake tensors themselves raise errors for values
    that are read, and for shapes that depend on values.)"""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "cuda", f"{func} copies to {tensor.device}"
        return result


@pytest.fixture(params=["reference", "triton", "cuda"])
def backend(request, monkeypatch):
    if request.param != "reference":
        monkeypatch.setattr(type(backends.get(request.param)), "unavailable", lambda self: None)
    return request.param


@pytest.fixture
def gpu():
    with FakeTensorMode(), torch.device("cuda"), OnTheGpu():
        yield


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss(gpu, backend, soft, reduction):
    target = torch.rand(N, C) if soft else torch.ones(N, dtype=torch.int32)
    loss, terms = fused_disc_loss(
        torch.randn(N, C), target, [torch.randn(N, D), torch.randn(N, D, 4, 4).half()],
        reduction=reduction, weight=torch.rand(C), sample_weight=torch.rand(N), backend=backend,
        prior=torch.rand(C), label_smoothing=0.1, return_terms=True,
    )  # fmt: skip
    assert loss.shape == ((N,) if reduction == "none" else ())
    assert loss.device.type == terms.gini.device.type == "cuda"
    disc_terms(torch.randn(N, D), target, C, prior="uniform", impurity="collision", backend=backend)
    class_histogram(torch.randn(N, D), target, C, backend=backend)


def test_an_attached_criterion(gpu, backend):
    model, x, y = Net(), torch.randn(N, 3, 8, 8), torch.ones(N, dtype=torch.long)
    criterion = FusedDiscLoss.attach(model, backend=backend)
    for _ in range(2):  # the first pass finds the classifier
        assert criterion(model(x), y).device.type == "cuda"
        criterion.compute_loss_func(model(x), y, num_items_in_batch=torch.ones(()))


def test_running_sums(gpu, backend):
    criterion, y = RunningDiscLoss(backend=backend), torch.ones(N, dtype=torch.long)
    for _ in range(2):
        assert criterion(torch.randn(N, C), y, torch.randn(N, D)).device.type == "cuda"


def test_running_sums_of_a_checkpoint_that_was_loaded_to_the_cpu():
    criterion, target = RunningDiscLoss(backend="reference"), torch.ones(N, dtype=torch.long)
    batch = torch.randn(N, C), target, torch.randn(N, D)
    criterion(*batch)
    with FakeTensorMode() as mode:
        criterion.sums = criterion.sums._of([*map(mode.from_tensor, criterion.sums._tensors())])
        criterion(*(mode.from_tensor(tensor).cuda() for tensor in batch))
        assert criterion.sums.sizes.device.type == "cuda"


@pytest.mark.parametrize(
    "reading",
    [lambda t: t.sum().item(), lambda t: t[t > 0], lambda t: t.cpu(), lambda t: t.unique()],
)
def test_what_would_be_seen(gpu, reading):
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException, AssertionError)):
        reading(torch.ones(3))
