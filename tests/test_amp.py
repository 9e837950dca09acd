"""Mixed precision on the CPU: autocast, float16 and the loss scale. backends/test_gpu_training.py
tests GPUs."""

import copy

import pytest
import torch
from torch import nn

from cases import features, labels, soft_labels
from discfused import FusedDiscLoss, class_histogram, fused_disc_loss

N, D, C = 64, 32, 4
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
SCALE = 65536.0


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_below_float16_survive_the_scale(backend, reduction, soft):
    """Gradients are multiplied by the loss scale before they are rounded to float16 (PyTorch's
    GradScaler starts with 65536)."""
    y = soft_labels(N, C) if soft else labels(N, C)
    x, logits = features(N, D, torch.float16).abs().requires_grad_(), torch.randn(N, C)
    oracle = x.detach().double().requires_grad_()
    unit = 1e-4 / {"mean": 1, "sum": N, "none": N}[reduction]

    def loss(x, backend):
        return unit * fused_disc_loss(logits, y, x, reduction=reduction, backend=backend).sum()

    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    (scaled,) = torch.autograd.grad(scaler.scale(loss(x, backend)), x)
    (expected,) = torch.autograd.grad(loss(oracle, "reference"), oracle)
    assert 1e-10 < expected.abs().median() < 2e-8  # float16 ends at 6e-8
    assert not torch.autograd.grad(loss(x, backend), x)[0].count_nonzero() > x.numel() / 10
    torch.testing.assert_close(scaled.double() / SCALE, expected, rtol=2e-3, atol=1e-12)


@HALF
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_autocast_changes_no_bit(backend, soft, dtype):
    """The loss does not round its input to half precision."""
    y = soft_labels(N, C).float() if soft else labels(N, C)
    x, logits = features(N, D, torch.float32).requires_grad_(), torch.randn(N, C).requires_grad_()

    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss, terms = fused_disc_loss(logits, y, x, backend=backend, return_terms=True)
            H = class_histogram(x, y, C, backend=backend)
        gradients = torch.autograd.grad(loss + H.square().sum(), (logits, x))
        results.append([loss, *terms, H, *gradients])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, D), nn.ReLU(), nn.Linear(D, C))


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@HALF
def test_gradients_of_a_model_under_autocast(backend, dtype):
    """They equal those in float32 up to the rounding of the dtype."""
    model, x, y = net(), torch.randn(N, 20), labels(N, C)
    criterion = FusedDiscLoss.attach(model, backend=backend)
    criterion(model(x), y).backward()
    expected = gradients(model)
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    with torch.autocast("cpu", dtype):
        logits = model(x)
        loss = criterion(logits, y)
    assert logits.dtype == criterion.tap.take(logits).dtype == dtype
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    error = (gradients(model) - expected).norm() / expected.norm()
    assert error < 4 * torch.finfo(dtype).eps


@HALF
def test_training_with_a_scaler_follows_float32(backend, dtype):
    """Also with a batch that is not finite, whose step GradScaler skips."""
    plain, half = net(), net()
    x, y = torch.randn(N, 20), labels(N, C)
    losses = []
    for model, enabled in ((plain, False), (half, True)):
        criterion = FusedDiscLoss.attach(model, backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=SCALE)
        trace = []
        for step in range(6):
            optimizer.zero_grad()
            bad = enabled and step == 3
            before = copy.deepcopy(model.state_dict())
            with torch.autocast("cpu", dtype, enabled=enabled):
                loss = criterion(model(x * torch.inf if bad else x), y)
            if not enabled and step == 3:
                continue
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if bad:
                assert not loss.isfinite() and scaler.get_scale() == SCALE / 2
                torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
            else:
                trace.append(loss.detach())
        losses.append(torch.stack(trace))
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=2e-3)
    assert losses[0][-1] < losses[0][0]
