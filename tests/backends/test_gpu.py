"""The backends of CUDA tensors against the reference, on a GPU; large inputs and peak memory."""

from functools import partial

import pytest
import torch

import gpu
from cases import DTYPES, LAYOUTS, OPTIONS, equal, features, labels, soft_labels, step
from discfused import backends, class_sums
from gpu import DEVICE, on_a_gpu, one_or_all
from test_parity import check_histogram, check_terms

pytestmark, backend = gpu.pytestmark, gpu.backend

SHAPES = one_or_all(  # each path: one run of rows and many, slots cut or not; one or several tiles
    (37, 19, 10), (1, 1, 1), (3, 17, 1000), (64, 64, 40), (256, 130, 100), (300, 33, 2),
    (1000, 257, 1500), (1024, 64, 1000), (1500, 130, 7), (3000, 1030, 100), (5000, 40, 9000),
    (40000, 96, 10), (33000, 40, 70000),
)  # fmt: skip


def on_gpu(options: dict) -> dict:
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


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


def test_class_histogram(backend):
    check_histogram(backend, features(30, 8).to(DEVICE), labels(30, 5).to(DEVICE), 5)


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


@on_a_gpu
@pytest.mark.parametrize("C", [4, 60])  # classes in the batch, and more than samples
def test_class_sums(backend, C):
    x, y = torch.randn(40, 8, device=DEVICE), torch.randint(0, C, (40,), device=DEVICE)
    got = class_sums(x, y, C, backend=backend)
    expected = class_sums(x, y, C, backend="reference")
    for a, b in zip(got._tensors(), expected._tensors(), strict=True):
        torch.testing.assert_close(a, b)
