"""The backends of CUDA tensors on a GPU under torch.compile, autocast and warmup."""

import copy
import warnings

import pytest
import torch

import discfused
import gpu
from cases import labels, soft_labels, step
from discfused import FusedDiscLoss, backends, disc_terms, fused_disc_loss
from discfused.backends import triton_runtime
from gpu import DEVICE, on_a_gpu

pytestmark, backend = gpu.pytestmark, gpu.backend


@on_a_gpu
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_compile(backend, soft):
    y = soft_labels(96, 10).float() if soft else labels(96, 10)
    logits, x, y = torch.randn(96, 10).to(DEVICE), torch.randn(96, 40).to(DEVICE), y.to(DEVICE)

    def loss(logits, x):
        return fused_disc_loss(logits, y, x, backend=backend)

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in (logits, x)]
        value = function(*leaves)
        found.append([value, *torch.autograd.grad(value, leaves)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@on_a_gpu
def test_compiled_to_cuda_graphs(backend):
    """int32 labels become int64 in memory of the graph, which nothing may hold on to."""

    def loss(x, y):
        return sum(disc_terms(x, y, 10, backend=backend))

    compiled = torch.compile(loss, mode="reduce-overhead", fullgraph=True)
    for _ in range(5):  # runs, is recorded, is replayed
        x, y = torch.randn(96, 40).to(DEVICE), labels(96, 10).int().to(DEVICE)
        found = []
        for function in (loss, compiled):
            torch.compiler.cudagraph_mark_step_begin()
            leaf = x.clone().requires_grad_()
            value = function(leaf, y)
            found.append([value.detach().clone(), *torch.autograd.grad(value, leaf)])
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_training_with_amp(backend, dtype):
    """Steps with a GradScaler follow those of the reference backend."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)
    ).to(DEVICE)
    inputs, target = torch.randn(6, 128, 20).to(DEVICE), torch.randint(0, 5, (6, 128)).to(DEVICE)
    losses = []
    for name in ("reference", backend):
        net = copy.deepcopy(model)
        criterion = FusedDiscLoss.attach(net, backend=name)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
        trace = []
        for batch, labels_ in zip(inputs, target, strict=True):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, dtype):
                loss = criterion(net(batch), labels_)
            assert loss.dtype == torch.float32
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            trace.append(loss.detach())
        losses.append(torch.stack(trace))
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=2e-3)


@on_a_gpu
def test_warmup_leaves_nothing_to_compile():
    why = backends.get("triton").unavailable()
    if why is not None:
        pytest.skip(why)
    discfused.warmup([(256, 96), (2048, 96)], [torch.bfloat16], num_classes=50)
    kernels = triton_runtime.kernels()

    def compiled():
        names = [name for name in kernels.__all__ if name.endswith("_kernel")]
        caches = [c for name in names for c in getattr(kernels, name).device_caches.values()]
        return sum(len(cache[0]) for cache in caches)

    before = compiled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for N in (250, 256, 2048, 1900):
            x = torch.randn(N, 96, device=DEVICE).bfloat16()
            step("triton", x, torch.randint(0, 50, (N,), device=DEVICE), 50)
    assert compiled() == before
