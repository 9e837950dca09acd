"""Launches, streams, CUDA graphs, host synchronisation and late errors on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import gpu
from cases import DTYPES, equal, step
from discfused import _ops, backends, disc_terms, fused_disc_loss
from discfused._definitions import accumulation_dtype
from gpu import DEVICE, REHEARSED, on_a_gpu, one_or_all

pytestmark, backend = gpu.pytestmark, gpu.backend


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    "shape", one_or_all((64, 30, 10), (512, 300, 100), (4000, 200, 50), (300, 64, 5000)), ids=str
)
def test_the_same_bits_on_every_run(backend, shape, deterministic):
    N, D, C = shape
    x = torch.randn(N, D, device=DEVICE, dtype=torch.bfloat16)
    y = torch.randint(0, C, (N,), device=DEVICE)
    first = step(backend, x, y, C)
    torch.use_deterministic_algorithms(deterministic)
    try:
        assert all(equal(first, step(backend, x, y, C)) for _ in range(2 if REHEARSED else 20))
    finally:
        torch.use_deterministic_algorithms(False)


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(256, 128, 100), (8192, 512, 1000), (64, 32, 1000)], ids=str)
def test_few_launches_forward_and_one_backward(backend, shape, dtype):
    N, D, C = shape
    x = torch.randn(N, D, device=DEVICE).to(dtype).requires_grad_()
    y = torch.randint(0, C, (N,), device=DEVICE)
    upstream = torch.ones((), device=DEVICE, dtype=accumulation_dtype(dtype))
    operators = _ops.named(backend)

    def forward():
        rows = operators.rows(y, None, C, -100, accumulation_dtype(dtype))
        return operators.terms(x, rows, C, None, 0, 0, 0.3, 0.7)[:3]

    def launches(function):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            result = function()
            torch.cuda.synchronize()
        events = profiler.events()
        return result, [event.name for event in events if event.device_type == DeviceType.CUDA]

    torch.autograd.grad(forward()[0], x, upstream)
    (penalty, _, _), names = launches(forward)
    assert len(names) <= 8, names
    _, names = launches(lambda: torch.autograd.grad(penalty, x, upstream))
    assert len(names) == 1, names


@on_a_gpu
@pytest.mark.parametrize("shape", [(256, 128, 100), (2000, 128, 10), (64, 32, 1000)], ids=str)
def test_no_host_synchronisation(backend, shape):
    N, D, C = shape
    x, y = torch.randn(N, D, device=DEVICE), torch.randint(0, C, (N,), device=DEVICE)
    step(backend, x, y, C)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(backend, x, y, C)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
@pytest.mark.parametrize("shape", [(256, 128, 100), (2000, 128, 10), (64, 32, 1000)], ids=str)
def test_cuda_graph(backend, shape):
    """Captured once, replayed on other numbers: the same bits as eager mode gives for these."""
    N, D, C = shape
    x = torch.randn(N, D, device=DEVICE).requires_grad_()
    y = torch.randint(0, C, (N,), device=DEVICE)

    def run():
        gini, kl = disc_terms(x, y, C, backend=backend)
        return gini, kl, torch.autograd.grad(0.7 * gini + 0.4 * kl, x)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(N, D))
        y.copy_(torch.randint(0, C, (N,)))
        graph.replay()
        got = [t.clone() for t in captured]
        assert equal(got, step(backend, x, y, C))
    backends.check_labels()
    y[0] = C
    graph.replay()
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match=r"target\[\d+\] is .* in a batch on cuda"):
        backends.check_labels()


@on_a_gpu
def test_several_streams(backend):
    batches = [
        (torch.randn(700, 130, device=DEVICE), torch.randint(0, 20, (700,), device=DEVICE))
        for _ in range(8)
    ]
    expected = [step(backend, x, y, 20) for x, y in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    found = []
    for stream, (x, y) in zip(streams, batches, strict=True):
        with torch.cuda.stream(stream):
            found.append(step(backend, x, y, 20))
    torch.cuda.synchronize()
    assert all(map(equal, found, expected))


@on_a_gpu
def test_on_another_device_than_the_current_one(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, y = torch.randn(50, 20, device="cuda:1"), torch.randint(0, 5, (50,), device="cuda:1")
    assert torch.cuda.current_device() == 0
    there, here = step(backend, x, y, 5), step(backend, x.to("cuda:0"), y.to("cuda:0"), 5)
    assert equal([t.cpu() for t in there], [t.cpu() for t in here])


@on_a_gpu
def test_bad_labels_are_counted_without_a_dead_context(backend):
    x, y = torch.randn(40, 8, device=DEVICE), torch.randint(0, 5, (40,), device=DEVICE)
    y[3], y[9] = 5, -7
    x.requires_grad_()
    disc_terms(x, y, 5, backend=backend)
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match=r"target\[3\] is 5, expected .* \(2 labels .* on cuda"):
        disc_terms(x, y.clamp(0, 4), 5, backend=backend)
    assert torch.isfinite(disc_terms(x, y.clamp(0, 4), 5, backend=backend).gini)
    # Nor does cross-entropy, for which they are ignored rows.
    logits = torch.randn(40, 5, device=DEVICE)
    loss = fused_disc_loss(logits, y, x, backend=backend, gini_weight=0.0, kl_weight=0.0)
    expected = F.cross_entropy(logits, torch.where((y < 0) | (y > 4), -100, y))
    torch.cuda.synchronize()
    torch.testing.assert_close(loss, expected)
    y.clamp_(0, 4)  # overwritten by now: only their number is known
    with pytest.raises(IndexError, match="2 labels were out of range in a batch on cuda"):
        disc_terms(x, y, 5, backend=backend)


@on_a_gpu
def test_when_labels_are_checked(backend):
    x, y = torch.randn(40, 8, device=DEVICE), torch.randint(0, 5, (40,), device=DEVICE)
    y[7] = 5
    with pytest.raises(IndexError, match=r"target\[7\] is 5"):
        disc_terms(x, y, 5, backend=backend, check_labels="sync")
    terms = disc_terms(x, y, 5, backend=backend, check_labels="off")
    torch.cuda.synchronize()
    y[7] = -100
    for got, expected in zip(terms, disc_terms(x, y, 5, backend=backend), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
