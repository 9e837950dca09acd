"""Shapes, layouts, dtypes, labels and tolerances for the tests of all backends."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from discfused import disc_terms
from discfused._definitions import ACTIVATIONS, IMPURITIES, accumulation_dtype

# N, D, C: ones; odd sizes; more classes than samples; wider than a block of columns; many rows; a
# class with more rows than one partial sum
SHAPES = [
    (1, 1, 1),
    (2, 1, 2),
    (5, 3, 1),
    (7, 5, 3),
    (37, 19, 10),
    (16, 64, 40),
    (3, 17, 1000),
    (130, 257, 7),
    (300, 33, 2),
    (1100, 18, 2),
]

# Memory layouts of the same numbers.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.t().contiguous().t(),
    "sliced": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "every second": lambda x: torch.stack([x, x], 2).flatten(1)[:, ::2],
    "expanded rows": lambda x: x[:1].expand(x.shape),
    "expanded columns": lambda x: x[:, :1].expand(x.shape),
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}


RELEASE = tuple(map(int, torch.__version__.split(".")[:2]))  # of PyTorch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

# The allowed error against the oracle, which has the same rounded input in float64: the error of
# plain PyTorch in the same dtype, plus a margin for another order of sums, in roundings of the
# accumulation dtype (we saw 8), plus the rounding of gradients to their dtype.
MARGIN = 32


def allowed(oracle: Tensor, plain: Tensor, dtype: torch.dtype, rounding: float) -> Tensor:
    """The largest allowed |result - oracle| of each element. `rounding`: to the dtype, in units in
    the last place."""
    if not oracle.numel():
        return torch.zeros_like(oracle)
    unit = torch.finfo(accumulation_dtype(dtype)).eps * oracle.abs().max().clamp(min=1)
    last = oracle.abs() * torch.finfo(dtype).eps
    return (plain - oracle).abs().max() + MARGIN * unit + rounding * last


def labels(N: int, C: int, kind: str = "random") -> Tensor:
    """[N] class indices: random, all one class, every class absent but two, or some ignored."""
    y = torch.randint(0, C, (N,))
    if kind == "one class":
        y = torch.full((N,), C - 1)
    elif kind == "two classes":
        y = torch.where(y % 2 == 0, 0, C - 1)
    elif kind == "some ignored":
        y[::3] = -100
    elif kind == "all ignored":
        y[:] = -100
    return y


LABELS = ["random", "one class", "two classes", "some ignored", "all ignored"]


def soft_labels(N: int, C: int, kind: str = "mixup") -> Tensor:
    """[N, C] class probabilities: two classes a row (mixup), dense, or one-hot."""
    if kind == "dense":
        return torch.rand(N, C, dtype=torch.float64).softmax(1)
    first, second = (torch.eye(C, dtype=torch.float64)[torch.randint(0, C, (N,))] for _ in "ab")
    share = torch.rand(N, 1, dtype=torch.float64) if kind == "mixup" else 1.0
    return share * first + (1 - share) * second


@dataclass(frozen=True)
class OptionCase:
    name: str
    make: Callable[[int, int], dict] = field(compare=False)  # (N, C) -> keywords of disc_terms

    def __str__(self) -> str:
        return self.name


OPTIONS = [
    *(
        OptionCase(f"{activation}, {impurity}",
                   lambda N, C, a=activation, i=impurity: {"activation": a, "impurity": i})
        for activation in ACTIVATIONS
        for impurity in IMPURITIES
    ),
    OptionCase("uniform prior", lambda N, C: {"prior": "uniform"}),
    OptionCase("prior tensor", lambda N, C: {"prior": torch.rand(C) + 0.1}),
    OptionCase("prior with zeros",
               lambda N, C: {"prior": torch.arange(C).remainder(2) if C > 1 else torch.ones(1)}),
    OptionCase("sample weights", lambda N, C: {"sample_weight": torch.rand(N)}),
    OptionCase("sample weights with zeros",
               lambda N, C: {"sample_weight": torch.arange(N) % 3, "impurity": "collision"}),
]  # fmt: skip


def features(N: int, D: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive and negative features, with a dead column if there are several columns."""
    x = torch.randn(N, D, dtype=torch.float64) + 0.5 * torch.rand(D, dtype=torch.float64)
    if D > 2:
        x[:, 1] = 0
    return x.to(dtype)


OFF = {"gini_weight": 0.0, "kl_weight": 0.0}  # cross-entropy alone


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


def terms_and_gradients(x, target, backend, num_classes, **options) -> tuple[Tensor, Tensor]:
    """[2] and [2, N, D]: gini and kl, and their gradients"""
    x = x.detach().requires_grad_()
    values = torch.stack(disc_terms(x, target, num_classes, backend=backend, **options))
    found = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in values]
    return values.detach(), torch.stack(found)


def step(backend, x, y, C, **options) -> tuple[Tensor, Tensor, Tensor]:
    """gini, kl and the gradient of a combination of them"""
    x = x.detach().requires_grad_()
    gini, kl = disc_terms(x, y, C, backend=backend, **options)
    (0.7 * gini + 0.4 * kl).backward()
    return gini.detach(), kl.detach(), x.grad


def equal(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
