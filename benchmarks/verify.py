"""Nobody is timed who computes something else: value and gradient against the float64 oracle."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.competitors import Loss, summed, written_as_specified

# Of the value, and of the gradient as |error| / |gradient| in the Euclidean norm; bfloat16 rounds
# the gradient to 8 bits.
VALUE = 1e-4
GRADIENT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2}
# An x so close to its mean, as a share of it, may fire or not: float32 cannot tell. Among millions
# of x there are some, and one alone can be off by 1e-3 of the norm.
ON_THE_MEAN = 1e-5


class Inputs(NamedTuple):
    x: list[Tensor]  # [N, D] each, leaves: used in turns
    y: Tensor  # [N]
    C: int


class Expected(NamedTuple):
    value: float
    gradient: Tensor  # [N, D] float64
    certain: Tensor  # [N, D] bool: x is off its mean


def make_inputs(case: Case, device: str, dtype: torch.dtype) -> Inputs:
    """Non-negative like average-pooled ReLU maps; random labels, so that some classes are absent.

    On a GPU there are enough sets to overflow its cache, because a training step would. On a CPU
    small features come from the cache, as they do when a network has just written them.
    """
    generator = torch.Generator().manual_seed(0)
    copies = 1
    if device == "cuda":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        size = case.N * case.D * dtype.itemsize
        copies = max(1, min(64, 2 * cache // size))
    x = torch.randn(case.N, case.D, generator=generator).abs_().to(device, dtype)
    y = torch.randint(0, case.C, (case.N,), generator=generator).to(device)
    return Inputs([x.clone().requires_grad_() for _ in range(copies)], y, case.C)


def oracle(inputs: Inputs) -> Expected:
    x = inputs.x[0].detach().double().requires_grad_()
    value = summed(written_as_specified)(x, inputs.y, inputs.C)
    (gradient,) = torch.autograd.grad(value, x)
    x = x.detach()
    mean = x.mean(0)
    return Expected(value.item(), gradient, (x - mean).abs() > ON_THE_MEAN * mean.abs())


def disagreement(loss: Loss, inputs: Inputs, expected: Expected) -> str | None:
    """None if the loss agrees with the oracle, else by how much it does not."""
    x = inputs.x[0]
    value = loss(x, inputs.y, inputs.C)
    (gradient,) = torch.autograd.grad(value, x)
    off = abs(value.item() - expected.value) / max(abs(expected.value), 1e-3)
    if not off <= VALUE:
        return f"value {value.item():.8g}, the reference in float64 gives {expected.value:.8g}"
    error = torch.where(expected.certain, gradient.double() - expected.gradient, 0).norm()
    error /= expected.gradient.norm()
    if not error <= GRADIENT[x.dtype]:
        return f"the gradient is off by {error.item():.1e} of its norm"
    return None
