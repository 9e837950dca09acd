"""The backends of CUDA tensors on a GPU: what interpreter, host and compilers cannot tell."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import gpu
from cases import DTYPES, LAYOUTS, OPTIONS, features, labels, soft_labels
from discfused import _ops, backends, class_histogram, class_sums, disc_terms, fused_disc_loss
from discfused._definitions import accumulation_dtype
from gpu import DEVICE, REHEARSED, on_a_gpu, one_or_all, step
from test_parity import check_terms

pytestmark, backend = gpu.pytestmark, gpu.backend

SHAPES = one_or_all(  # each path: few and many rows, a sort, slots cut or not; one or several tiles
    (37, 19, 10), (1, 1, 1), (3, 17, 1000), (64, 64, 40), (256, 130, 100), (300, 33, 2),
    (1000, 257, 1500), (1024, 64, 1000), (1500, 130, 7), (3000, 1030, 100), (5000, 40, 9000),
    (40000, 96, 10), (33000, 40, 70000),
)  # fmt: skip


def on_gpu(options: dict) -> dict:
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def equal(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@on_a_gpu
def test_cuda_tensors_get_the_first_that_can_run():
    names = [name for name in ("triton", "cuda") if backends.get(name).unavailable() is None]
    assert backends.resolve("cuda", None) == [*names, "reference"][0]


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(backend, shape, dtype):
    N, D, C = shape
    if N * C > 1e8:  # the oracle's [N, C] matrix
        C, N = 20000, min(N, 4000)
    check_terms(backend, features(N, D, dtype).to(DEVICE), labels(N, C).to(DEVICE), C)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", one_or_all((37, 19, 10), (9, 20, 30), (1100, 70, 12)), ids=str)
@pytest.mark.parametrize("dtype", one_or_all(torch.float64, torch.float32), ids=str)
def test_options(backend, shape, dtype, case):
    N, D, C = shape
    x, y = features(N, D, dtype).to(DEVICE), labels(N, C, "some ignored").to(DEVICE)
    check_terms(backend, x, y, C, **on_gpu(case.make(N, C)))


@pytest.mark.parametrize("share", one_or_all(0.3, 0.97, 1.0))
@pytest.mark.parametrize(("N", "D"), one_or_all((60, 20), (5000, 300), (40000, 300)))
def test_uneven_classes(backend, N, D, share):
    """One class has most of the rows, many chunks of them; others have one."""
    y = torch.where(torch.arange(N) < share * N, 5, labels(N, 600))[torch.randperm(N)]
    check_terms(backend, features(N, D, torch.float32).to(DEVICE), y.to(DEVICE), 600)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("N", one_or_all(40, 1100))
def test_layouts(backend, layout, N):
    check_terms(backend, LAYOUTS[layout](features(N, 21).to(DEVICE)), labels(N, 5).to(DEVICE), 5)


@pytest.mark.parametrize("dtype", one_or_all(torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("tf32", [False, True])
def test_soft_labels(backend, dtype, tf32, request):
    flags = torch.backends.cuda.matmul  # with attributes that monkeypatch cannot restore
    request.addfinalizer(partial(setattr, flags, "allow_tf32", flags.allow_tf32))
    flags.allow_tf32 = tf32
    y = soft_labels(150, 12).to(DEVICE)
    check_terms(backend, features(150, 70, dtype).to(DEVICE), y, 12)


def test_rows_that_do_not_count_may_hold_anything(backend):
    for N in one_or_all(60, 1200):
        x, y = features(N, 9).to(DEVICE), labels(N, 5, "some ignored").to(DEVICE)
        expected = step(backend, x, y, 5)
        x[::3] = torch.nan
        assert equal(expected, step(backend, x, y, 5))


def test_upstream_gradient_of_any_strides(backend):
    x, y = features(30, 8).to(DEVICE), labels(30, 5).to(DEVICE)
    upstream = torch.randn(8, 5, dtype=torch.float64, device=DEVICE)
    found = []
    for name in ("reference", backend):
        leaf = x.clone().requires_grad_()
        H = class_histogram(leaf, y, 5, backend=name)
        ((H.t() * upstream).sum() + H.sum()).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- size


@on_a_gpu
def test_more_than_2_31_elements(backend):
    """Columns beyond element 2^31: the last rows must be read and written where they are."""
    N, D, C = 2**20 + 64, 2080, 16
    free, _ = torch.cuda.mem_get_info()
    if free < 5 * N * D * 2:
        pytest.skip(f"needs {5 * N * D * 2 >> 30} GiB of free GPU memory, there are {free >> 30}")
    y = torch.arange(N, device=DEVICE) % C
    x = torch.zeros(N, D, dtype=torch.bfloat16, device=DEVICE)
    x[:, :32] = torch.randn(N, 32, device=DEVICE).bfloat16()
    x[:, -32:] = x[:, :32]  # the same numbers at the other end
    x[:, 32:-32] = 0  # dead features: they count as 1 in gini
    gini, kl, dx = step(backend, x, y, C)
    small = step(backend, x[:, :32].clone(), y, C)
    gini = 1 - (1 - gini) * D / 64  # of the two times 32 live ones
    torch.testing.assert_close(gini, small[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kl, small[1], rtol=1e-3, atol=1e-6)
    assert not dx[:, 32:-32].any() and torch.equal(dx[:, :32], dx[:, -32:])
    assert dx[-1, :32].any()


@on_a_gpu
def test_many_classes(backend):
    N, D, C = 1024, 256, 21841
    x = torch.randn(N, D, device=DEVICE)
    y = torch.randint(0, C, (N,), device=DEVICE)
    check_terms(backend, x, y, C)
    dense = y.unique(return_inverse=True)[1]
    for got, expected in zip(step(backend, x, y, C), step(backend, x, dense, N), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@on_a_gpu
@pytest.mark.parametrize("C", [100, 21841])
@pytest.mark.parametrize("N", [1024, 8192])
def test_peak_memory(backend, N, C):
    """Beside x: its gradient, the table, and little more; nothing that grows with C > N."""
    D = 1024
    x = torch.randn(N, D, device=DEVICE, dtype=torch.bfloat16)
    y = torch.randint(0, C, (N,), device=DEVICE)
    step(backend, x, y, C)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(backend, x, y, C)
    peak = torch.cuda.max_memory_allocated() - before
    table = min(N, C) * D * 4
    assert peak <= 1.25 * (x.nbytes + table) + (4 << 20)


# ---------------------------------------------------------------- the GPU's ways


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
    assert len(names) <= {"triton": 7, "cuda": 40}[backend], names  # "cuda" has PyTorch sort
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


@on_a_gpu
@pytest.mark.parametrize("C", [4, 60])  # classes in the batch, and more than samples
def test_class_sums(backend, C):
    x, y = torch.randn(40, 8, device=DEVICE), torch.randint(0, C, (40,), device=DEVICE)
    got = class_sums(x, y, C, backend=backend)
    expected = class_sums(x, y, C, backend="reference")
    for a, b in zip(got._tensors(), expected._tensors(), strict=True):
        torch.testing.assert_close(a, b)
