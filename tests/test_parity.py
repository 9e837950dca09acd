"""Every fused backend against the reference in float64: values and gradients."""

import pytest
import torch

from cases import (
    DTYPES,
    LABELS,
    LAYOUTS,
    OPTIONS,
    SHAPES,
    allowed,
    features,
    labels,
    soft_labels,
)
from discfused import class_histogram, disc_terms
from discfused._definitions import ACTIVATIONS


def check_terms(backend, x, target, C, rounding=0.5, **options):
    """Checks both terms and a random combination of their gradients against the oracle."""
    upstream = torch.randn(2, dtype=torch.float64)

    def run(x, name):
        x = x.detach().requires_grad_()
        terms = torch.stack(disc_terms(x, target, C, backend=name, **options)).double()
        (gradient,) = torch.autograd.grad((upstream.to(x.device) * terms).sum(), x)
        assert gradient.dtype == x.dtype and gradient.shape == x.shape
        return terms.detach(), gradient.double()

    # `allowed` takes 1 for the largest number that takes part. Where classes hardly differ, so that
    # P is about 1 / C, the gradient is what is left of terms up to 32 times as large.
    largest = run(x.double(), "reference")[1].abs().max().item() if x.numel() else 0
    if largest > 1e-10:  # else it is 0, but for rounding
        upstream /= 32 * largest
    oracle, plain, got = run(x.double(), "reference"), run(x, "reference"), run(x, backend)
    for part, to_dtype in ((0, 0.0), (1, rounding)):
        error = (got[part] - oracle[part]).abs()
        limit = allowed(oracle[part], plain[part], x.dtype, to_dtype)
        assert (error <= limit).all(), (
            f"{('values', 'gradient')[part]}: off by {error.max().item():.3g}, where at most "
            f"{limit.max().item():.3g} passes\n{got[part]}\nexpected\n{oracle[part]}"
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(fused_backend, shape, dtype):
    N, D, C = shape
    check_terms(fused_backend, features(N, D, dtype), labels(N, C), C)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_too_large_for_the_caches(fused_backend, dtype):
    """From 16 MB on, the CPU kernels write whole lines that bypass the caches."""
    D, C = 1056, 300
    N = (16 << 20) // (D * dtype.itemsize) + 1
    check_terms(fused_backend, features(N, D, dtype), labels(N, C), C)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(37, 19, 10), (9, 20, 30)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_options(fused_backend, shape, dtype, case):
    N, D, C = shape
    options = case.make(N, C)
    check_terms(fused_backend, features(N, D, dtype), labels(N, C, "some ignored"), C, **options)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["mixup", "dense", "one-hot"])
def test_soft_labels(fused_backend, kind, case):
    N, D, C = 21, 18, 6
    check_terms(fused_backend, features(N, D), soft_labels(N, C, kind), C, **case.make(N, C))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("C", [4, 100])
def test_labels(fused_backend, kind, C):
    check_terms(fused_backend, features(30, 9), labels(30, C, kind), C)


def test_labels_of_several_digits(fused_backend):
    """The CPU sorts labels by 10 bits at a time."""
    C = 5000
    y = torch.cat([labels(15, C), torch.tensor([7, 7 + 1024, 7 + 2048])]).repeat(2)
    check_terms(fused_backend, features(36, 9), y, C)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(fused_backend, layout, dtype):
    x = LAYOUTS[layout](features(40, 21, dtype))
    check_terms(fused_backend, x, labels(40, 5), 5)


def test_strided_labels(fused_backend):
    hard = torch.stack([labels(20, 5)] * 3, 1)[:, 1]
    check_terms(fused_backend, features(20, 8), hard, 5)
    check_terms(fused_backend, features(20, 8), hard[:1].expand(20), 5)
    check_terms(fused_backend, features(20, 8), soft_labels(20, 5).t().contiguous().t(), 5)
    weights = torch.rand(40)[::2]
    check_terms(fused_backend, features(20, 8), hard, 5, sample_weight=weights)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_integer_labels_of_any_dtype(backend, dtype):
    x, y = features(20, 8), labels(20, 5)
    assert disc_terms(x, y.to(dtype), 5, backend=backend) == disc_terms(x, y, 5, backend=backend)


def check_histogram(backend, x, target, C, **options):
    """Checks H in float64, and its gradient for upstream gradients in the layouts of autograd."""
    x, oracle = (x.detach().clone().requires_grad_() for _ in range(2))
    expected = class_histogram(oracle, target, C, backend="reference", **options)
    got = class_histogram(x, target, C, backend=backend, **options)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    upstream = torch.randn_like(got)
    for each in (upstream, upstream.t().contiguous().t(), upstream[:1, :1].expand_as(got)):
        (gradient,) = torch.autograd.grad(got, x, each, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected, oracle, each, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_class_histogram(fused_backend, shape, soft, activation):
    N, D, C = shape
    target = soft_labels(N, C) if soft else labels(N, C, "some ignored")
    options = {"sample_weight": torch.rand(N), "activation": activation}
    check_histogram(fused_backend, features(N, D), target, C, **options)


def test_class_histogram_whose_reader_has_no_gradient(fused_backend):
    class Ignores(torch.autograd.Function):
        @staticmethod
        def forward(ctx, H, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return None, grad.expand(6, 4)

    for backend in (fused_backend, "reference"):
        x, other = torch.randn(6, 4).requires_grad_(), torch.randn(6, 4).requires_grad_()
        Ignores.apply(class_histogram(x, labels(6, 3), 3, backend=backend), other).backward()
        assert x.grad is None and torch.equal(other.grad, torch.ones(6, 4))


def test_upstream_gradient_survives_half_precision(fused_backend):
    """A gradient below the smallest float16, times a loss scale of 65536, is not lost."""
    x32 = features(64, 16, torch.float32)
    x, oracle = x32.half().requires_grad_(), x32.half().double().requires_grad_()
    y = labels(64, 4)
    for each, name in ((x, fused_backend), (oracle, "reference")):
        (disc_terms(each, y, 4, backend=name).gini * 1e-6 * 65536).backward()
    assert oracle.grad.abs().max() / 65536 < 6e-8
    torch.testing.assert_close(x.grad.double(), oracle.grad, rtol=1e-3, atol=1e-7)


def test_deep_offsets(fused_backend):
    """Features at an offset of more than 2^31 elements of memory that is never used."""
    storage = torch.empty(2**31 + 4096, dtype=torch.bfloat16)
    x = storage[-1024:].view(64, 16)
    x.copy_(features(64, 16))
    check_terms(fused_backend, x, labels(64, 4), 4)
    far = storage.as_strided((2, 16), (2**31, 1))
    far.copy_(features(2, 16))
    check_terms(fused_backend, far, torch.tensor([0, 1]), 2)
