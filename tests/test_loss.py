"""fused_disc_loss: gradients, layers, feature layouts, dtypes, reductions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cases import DTYPES, OFF, features, gradients, labels, soft_labels
from discfused import disc_terms, fused_disc_loss

N, D, C = 24, 10, 5


@pytest.mark.parametrize("scale", [3.0, 1 / 7, 65536.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_upstream_gradient(fused_backend, reduction, scale):
    """Random, non-uniform upstream gradients reach every row and every feature."""
    y, upstream = labels(N, C), scale * torch.randn(N if reduction == "none" else ()).double()
    inputs = torch.randn(N, C).double().requires_grad_(), features(N, D).requires_grad_()
    results = []
    for name in (fused_backend, "reference"):
        loss = fused_disc_loss(inputs[0], y, inputs[1], reduction=reduction, backend=name)
        results.append(torch.autograd.grad(loss, inputs, upstream))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck_with_random_upstream_gradients(backend, reduction, soft):
    n = 7
    logits = torch.randn(n, C).double().requires_grad_()
    x = features(n, 4).requires_grad_()
    target = soft_labels(n, C) if soft else labels(n, C, "some ignored")
    upstream = torch.randn(n if reduction == "none" else ()).double()
    options = {
        "reduction": reduction, "backend": backend, "weight": torch.rand(C).double() + 0.1,
        "sample_weight": torch.rand(n).double() + 0.1, "label_smoothing": 0.1,
        "gini_weight": 0.7, "kl_weight": 1.3,
    }  # fmt: skip

    def loss(logits, x):
        value = fused_disc_loss(logits, target, x, **options)
        return value, (upstream * value).sum()

    assert torch.autograd.gradcheck(loss, (logits, x))


def test_two_losses_on_the_same_logits_and_features(backend):
    """Also on the output of a softmax, which its backward needs unchanged."""
    raw, x, y = torch.randn(N, C).double(), features(N, D), labels(N, C)

    def run(*reductions):
        leaf, feature_leaf = raw.clone().requires_grad_(), x.clone().requires_grad_()
        logits, features = leaf.softmax(1), feature_leaf.relu()
        losses = [fused_disc_loss(logits, y, features, reduction=r, backend=backend)
                  for r in reductions]  # fmt: skip
        return torch.autograd.grad(sum(losses), (leaf, feature_leaf))

    both = run("mean", "sum")
    separate = zip(run("mean"), run("sum"), strict=True)
    torch.testing.assert_close(both, tuple(a + b for a, b in separate), rtol=1e-12, atol=1e-12)


def test_frozen_features_leave_the_gradient_of_cross_entropy(backend):
    logits, x, y = torch.randn(N, C, requires_grad=True), features(N, D), labels(N, C)
    loss = fused_disc_loss(logits, y, x, backend=backend)
    assert loss > F.cross_entropy(logits, y)
    expected = gradients(F.cross_entropy(logits, y), logits)
    torch.testing.assert_close(gradients(loss, logits), expected)


def test_several_layers_are_averaged(backend):
    logits, y = torch.randn(N, C), labels(N, C)
    maps = torch.randn(N, 6, 3, 3, requires_grad=True)
    flat = torch.randn(N, D, requires_grad=True)
    loss, terms = fused_disc_loss(logits, y, [maps, flat], return_terms=True, backend=backend)
    each = [disc_terms(layer, y, C, backend=backend) for layer in (maps, flat)]
    for index in (0, 1):
        mean = (each[0][index] + each[1][index]) / 2
        torch.testing.assert_close(terms[index + 1], mean.detach())
    loss.backward()
    assert maps.grad.abs().sum() > 0 and flat.grad.abs().sum() > 0


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_labels_are_looked_at_once_for_all_layers(fused_backend, soft):
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    names = []
    target = soft_labels(N, C) if soft else labels(N, C)
    layers = [torch.randn(N, width, requires_grad=True) for width in (3, 4, 5)]
    with Calls():
        fused_disc_loss(torch.randn(N, C), target, layers, backend=fused_backend).backward()
    count = {name: names.count(f"discfused::{fused_backend}_{name}")
             for name in ("rows", "terms", "gradient")}  # fmt: skip
    assert count == {"rows": 1, "terms": 3, "gradient": 3}


def test_feature_layouts(backend):
    """phi first, then the mean over the rest."""
    y = labels(N, C)
    maps = torch.randn(N, D, 4, 3)
    expected = disc_terms(maps.abs().mean((2, 3)), y, C, backend=backend)
    assert disc_terms(maps, y, C, backend=backend) == expected
    tokens = maps.flatten(2).transpose(1, 2)  # [N, T, D]
    torch.testing.assert_close(disc_terms(tokens, y, C, feature_dim=-1, backend=backend), expected)
    half = maps.half()  # averaged in float32, not rounded in between
    exact = disc_terms(half.float().abs().mean((2, 3)), y, C, backend=backend)
    torch.testing.assert_close(disc_terms(half, y, C, backend=backend), exact)


@pytest.mark.parametrize("features_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("logits_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_mixed_dtypes(backend, features_dtype, logits_dtype, autocast):
    logits = torch.randn(N, C).to(logits_dtype).requires_grad_()
    x, y = features(N, D, features_dtype).requires_grad_(), labels(N, C)
    double = torch.float64 in (features_dtype, logits_dtype)
    for reduction in ("none", "sum", "mean"):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = fused_disc_loss(logits, y, x, backend=backend, reduction=reduction)
        assert loss.dtype == (torch.float64 if double else torch.float32)
    expected = fused_disc_loss(logits.double(), y, x.double(), backend="reference")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert logits.grad.dtype == logits_dtype and x.grad.dtype == features_dtype


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_sum_counts_rows_in_full_precision(soft, dtype):
    many = 2049  # more than either dtype can count to
    logits, x = torch.zeros(many, C), features(many, D)
    y = F.one_hot(labels(many, C), C).to(dtype) if soft else labels(many, C)
    ones = torch.ones(many, dtype=dtype)
    gini, kl = disc_terms(x, y, C)
    expected = many * (math.log(C) + 0.3 * gini + 0.3 * kl)
    for weights in ({}, {"sample_weight": ones}):
        loss = fused_disc_loss(
            logits, y, x, reduction="sum", gini_weight=0.3, kl_weight=0.3, **weights
        )
        torch.testing.assert_close(loss, expected)


def test_views_that_are_negated_when_read(backend):
    z = torch.complex(features(N, D), features(N, D))
    x, y = z.conj().imag, labels(N, C)
    assert x.is_neg()
    expected = disc_terms(-z.imag, y, C, backend="reference")
    torch.testing.assert_close(disc_terms(x, y, C, backend=backend), expected)


@pytest.mark.parametrize("scale", [1e-60, 1.0, 3e38, 1e60])
def test_the_scale_of_a_prior_does_not_matter(backend, scale):
    x, y = features(N, D), labels(N, C)
    prior = torch.arange(1, C + 1, dtype=torch.float64)
    expected = disc_terms(x, y, C, prior=prior / prior.sum(), backend="reference")
    got = disc_terms(x, y, C, prior=prior / C * scale, backend=backend)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_no_input_is_written_to(backend, soft):
    logits, x = torch.randn(N, C, requires_grad=True), features(N, D).requires_grad_()
    target = soft_labels(N, C) if soft else labels(N, C, "some ignored")
    weights = {"weight": torch.rand(C), "sample_weight": torch.rand(N), "prior": torch.rand(C)}
    inputs = [logits, x, target, *weights.values()]
    before = [(tensor._version, tensor.detach().clone()) for tensor in inputs]
    loss = fused_disc_loss(logits, target, x, backend=backend, **weights)
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    x.grad = None
    loss.backward()  # twice over one graph, the same gradient
    assert torch.equal(x.grad, first)
    for tensor, (version, copy) in zip(inputs, before, strict=True):
        assert tensor._version == version and torch.equal(tensor, copy)


def test_the_value_does_not_depend_on_grad_mode(backend):
    logits, x, y = torch.randn(N, C), features(N, D), labels(N, C)
    with_grad = fused_disc_loss(logits, y, x.clone().requires_grad_(), backend=backend).detach()
    without = fused_disc_loss(logits, y, x, backend=backend)
    with torch.no_grad():
        no_grad = fused_disc_loss(logits, y, x, backend=backend)
    with torch.inference_mode():
        inference = fused_disc_loss(logits, y, x, backend=backend)
    assert with_grad == without == no_grad == inference


def test_double_backward_is_an_error_of_the_fused_backends(fused_backend):
    x = features(N, D).requires_grad_()
    for make in (
        lambda: disc_terms(x, labels(N, C), C, backend=fused_backend).gini,
        lambda: fused_disc_loss(torch.randn(N, C), labels(N, C), x, backend=fused_backend),
    ):
        (gradient,) = torch.autograd.grad(make(), x, create_graph=True)
        with pytest.raises(RuntimeError, match='backend="reference"'):
            gradient.square().sum().backward()


def test_return_terms_are_detached_and_unweighted(backend):
    logits, x, y = torch.randn(N, C, requires_grad=True), features(N, D), labels(N, C)
    x.requires_grad_()
    loss, terms = fused_disc_loss(
        logits, y, x, gini_weight=2.0, kl_weight=0.0, return_terms=True, backend=backend
    )
    assert not any(term.requires_grad for term in terms)
    torch.testing.assert_close(loss, terms.ce + 2 * terms.gini)
    torch.testing.assert_close(terms[1:], tuple(disc_terms(x.detach(), y, C, backend=backend)))
    # weights of 0 still report the terms, but add nothing, not even NaN
    x = x.detach().index_fill(0, torch.tensor([0]), math.nan)
    loss, terms = fused_disc_loss(logits, y, x, return_terms=True, backend=backend, **OFF)
    assert loss == F.cross_entropy(logits, y) and terms.gini.isnan()
