"""The loss under opcheck, make_fx, fake tensors, torch.func and forward-mode differentiation."""

import pytest
import torch
from torch import library
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from cases import features, labels, soft_labels
from discfused import FusedDiscLoss, RunningDiscLoss, class_sums, disc_terms, fused_disc_loss

D, C = 12, 10


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("num_classes", [4, 30])
def test_opcheck(fused_backend, soft, num_classes):
    """opcheck cannot compare memory that `rows` and `terms` leave unwritten (slots without a
    class). So all classes are present here, or as many as rows."""
    ops = torch.ops.discfused
    rows, terms, gradient, histogram, histogram_gradient = (
        getattr(ops, f"{fused_backend}_{name}").default
        for name in ("rows", "terms", "gradient", "histogram", "histogram_gradient")
    )
    x = features(9, 6, torch.float32).requires_grad_()
    target = soft_labels(9, num_classes, "dense").float() if soft else torch.arange(9) % num_classes
    arguments = target, torch.rand(9) + 0.1, num_classes, -100, torch.float32
    library.opcheck(rows, arguments)
    found, prior = rows(*arguments), torch.full((num_classes,), 1 / num_classes)
    library.opcheck(terms, (x, found, num_classes, prior, 1, 1, 0.5, 0.25))
    kept = terms(x.detach(), found, num_classes, prior, 1, 1, 0.5, 0.25)[3]
    upstream = torch.randn(()), None, torch.randn(())
    library.opcheck(gradient, (x.detach(), found, kept, *upstream, 1, 0.5, 0.25))
    library.opcheck(histogram, (x, found, num_classes, 0))
    grad = torch.randn(num_classes, 6)
    library.opcheck(histogram_gradient, (grad, x.detach(), found, 0))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_loss(backend, mode):
    """The graph also computes the gradient of other inputs, so it contains no constants."""

    def gradient(logits, y, x):
        return torch.autograd.grad(fused_disc_loss(logits, y, x, backend=backend), x)[0]

    def inputs(seed):
        torch.manual_seed(seed)
        return torch.randn(9, C), labels(9, C), features(9, D).requires_grad_()

    graph = make_fx(gradient, tracing_mode=mode)(*inputs(0))
    torch.testing.assert_close(graph(*inputs(1)), gradient(*inputs(1)))


@pytest.mark.parametrize("how", ["meta", "fake"])
def test_shapes_without_data(how):
    with FakeTensorMode() if how == "fake" else torch.device("meta"):
        logits, x = torch.randn(9, C), torch.randn(9, D, requires_grad=True)
        y = torch.zeros(9, dtype=torch.long)
        loss = fused_disc_loss(logits, y, x, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss.shape == (9,) and gradient.shape == x.shape and loss.dtype == torch.float32


TRANSFORMS = {
    "grad": torch.func.grad,
    "jacrev": torch.func.jacrev,
    "hessian": torch.func.hessian,
    "vmap": lambda function: torch.func.vmap(lambda x: function(x.unsqueeze(0).expand(9, D))),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func(fused_backend, name):
    x, y = features(9, D), labels(9, C)

    def transformed(backend):
        return TRANSFORMS[name](lambda x: disc_terms(x, y, C, backend=backend).gini)(x)

    expected = transformed("reference")
    assert expected.isfinite().all()
    torch.testing.assert_close(transformed(None), expected)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        transformed(fused_backend)


@pytest.mark.parametrize("criterion", [FusedDiscLoss, RunningDiscLoss])
def test_forward_mode_of_class_sums(criterion):
    x, y, z, tangent = features(9, D), labels(9, C), torch.randn(9, C), torch.randn(9, D)
    tangent = tangent.double()
    options = {"class_sums": class_sums(x, y, C)} if criterion is FusedDiscLoss else {}

    def loss(x):
        return criterion()(z, y, x, **options)

    expected = (torch.func.grad(loss)(x) * tangent).sum()
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)


def test_forward_mode(fused_backend):
    """backend=None uses the reference. A named fused backend raises an error."""
    x, y, tangent = features(9, 4), labels(9, 3), torch.randn(9, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        disc_terms(x.requires_grad_(), y, 3, backend="reference").gini, x
    )
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), tangent)
        got = forward_ad.unpack_dual(disc_terms(dual, y, 3).gini).tangent
        torch.testing.assert_close(got, (gradient * tangent).sum())
        with pytest.raises(RuntimeError, match='use backend="reference"'):
            disc_terms(dual, y, 3, backend=fused_backend)
