"""The strides of arguments do not change the results."""

import pytest
import torch

from cases import DTYPES, LAYOUTS, features, labels, soft_labels
from discfused import backends, class_histogram, disc_terms, fused_disc_loss
from discfused._definitions import ACTIVATIONS

N, D, C = 20, 9, 5

VECTORS = {
    "every second": lambda v: torch.stack([v, v.flip(0)], 1).flatten()[::2],
    "column": lambda v: torch.stack([v.flip(0), v], 1)[:, 1],
    "offset": lambda v: torch.cat([v, v])[len(v) :],
}


def overlapping(x):
    """Row i + 1 starts at the second number of row i."""
    return torch.randn(x.shape[0] + x.shape[1], dtype=x.dtype).as_strided(x.shape, (1, 1))


MATRICES = {
    **LAYOUTS,
    "expanded from one number": lambda x: x[:1, :1].expand(x.shape),
    "overlapping": overlapping,
}


def arguments(soft: bool) -> dict:
    return {
        "logits": torch.randn(N, C).double(),
        "target": soft_labels(N, C) if soft else labels(N, C, "some ignored"),
        "features": features(N, D),
        "weight": torch.rand(C) + 0.1,
        "sample_weight": torch.rand(N),
        "prior": torch.rand(C) + 0.1,
    }


def losses_and_gradients(given: dict, backend: str):
    """The arguments keep their layout: requires_grad_() makes no copy."""
    leaves = [given[name].detach().requires_grad_() for name in ("logits", "features")]
    rest = {key: value for key, value in given.items() if key not in ("logits", "features")}
    target = rest.pop("target")
    loss = fused_disc_loss(leaves[0], target, leaves[1], reduction="none", backend=backend, **rest)
    upstream = torch.ones((), dtype=loss.dtype).expand(loss.shape)  # stride 0
    return [loss.detach(), *torch.autograd.grad(loss, leaves, upstream)]


CASES = [
    *[(name, layout, False) for name in ("logits", "features") for layout in MATRICES],
    *[("target", layout, True) for layout in MATRICES if layout != "overlapping"],
    *[(name, layout, False) for name in ("target", "weight", "sample_weight", "prior")
      for layout in VECTORS],
]  # fmt: skip


@pytest.mark.parametrize(("name", "layout", "soft"), CASES)
def test_arguments_of_any_strides(backend, name, layout, soft):
    given = arguments(soft)
    make = (VECTORS if given[name].dim() == 1 else MATRICES)[layout]
    given[name] = make(given[name])
    plain = {key: value.contiguous().clone() for key, value in given.items()}
    got = losses_and_gradients(given, backend)
    for a, b in zip(got, losses_and_gradients(plain, backend), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layout", MATRICES)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_upstream_gradients_of_any_strides(backend, layout, soft):
    x, target = features(N, D), arguments(soft)["target"]
    upstream = MATRICES[layout](torch.randn(C, D).double())
    found = []
    for each in (upstream, upstream.contiguous().clone()):
        leaf = x.clone().requires_grad_()
        H = class_histogram(leaf, target, C, backend=backend)
        found.append(torch.autograd.grad(H, leaf, each)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_feature_maps_in_channels_last(backend):
    """Feature maps in channels_last, with gradients."""
    maps, y = torch.randn(N, D, 3, 2).double(), labels(N, C)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf = maps.to(memory_format=memory_format).requires_grad_()
        loss = fused_disc_loss(torch.zeros(N, C), y, leaf, backend=backend)
        found.append([loss.detach(), torch.autograd.grad(loss, leaf)[0]])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [300, 4500])
def test_the_cpu_sums_in_one_order_wherever_features_lie(rows, activation, dtype):
    if reason := backends.get("cpu").unavailable():
        pytest.skip(reason)
    x, y = features(rows, 80, dtype), labels(rows, 7, "some ignored")
    found = []
    for each in (x, x.t().contiguous().t()):
        leaf = each.detach().requires_grad_()
        terms = disc_terms(leaf, y, 7, activation=activation, backend="cpu")
        found.append([*terms, torch.autograd.grad(sum(terms), leaf)[0]])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
