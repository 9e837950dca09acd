"""The specification's formulas, gradients included, written down once more without autograd."""

from typing import NamedTuple

import torch
from torch import Tensor

PHI = {  # and its derivative
    "relu": (lambda z: z.clamp(min=0), lambda z: (z > 0).to(z)),
    "abs": (torch.abs, torch.sign),
    "square": (lambda z: z * z, lambda z: 2 * z),
    "softplus": (lambda z: torch.logaddexp(z, torch.zeros_like(z)), torch.sigmoid),
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z)),
}


class Answer(NamedTuple):
    P: Tensor  # [C, L] of the live features
    q: Tensor  # [C]
    pi: Tensor  # [C]
    values: Tensor  # [2]: gini, kl
    gradients: Tensor  # [2, N, D]


def answer(
    x: Tensor, target: Tensor, num_classes: int, *, activation="relu", center=True, prior="batch",
    kl_direction="forward", weight=None, sample_weight=None, eps=1e-6,
) -> Answer:  # fmt: skip
    (N, D), C, double = x.shape, num_classes, {"dtype": torch.float64}
    m = target if target.is_floating_point() else (target[:, None] == torch.arange(C)).double()
    if weight is not None:
        m = m * weight
    if sample_weight is not None:
        m = m * sample_weight[:, None]
    n = m.sum(1, keepdim=True)
    share = n / n.sum() if n.any() else n
    z = x - (share * x).sum(0) if center else x
    phi, slope = (function(z) for function in PHI[activation])
    H = m.T @ phi
    T = H.sum(0)
    squared = activation == "square"
    threshold = eps**2 * (n * x**2).sum(0) if squared else eps * (n * x.abs()).sum(0)
    live = threshold < T
    L = int(live.sum())

    if isinstance(prior, str):
        prior = m.sum(0) if prior == "batch" else torch.ones(C, **double)
    pi = prior / prior.sum() if prior.any() else prior
    P = H[:, live] / T[live]
    if L == 0:
        return Answer(P, torch.zeros(C, **double), pi, torch.zeros(2, **double),
                      torch.zeros(2, N, D, **double))  # fmt: skip
    q = P.mean(1)
    gini = (1 - P.square().sum(0)).mean()
    floor = torch.tensor(1e-8, **double)
    if kl_direction == "forward":
        terms = torch.where(pi > 0, pi * torch.log(pi / torch.maximum(q, floor)), 0)
        A = torch.where((pi > 0) & (q > floor), -pi / q, 0)
    else:
        terms = torch.where(q > 0, q * torch.log(q / torch.maximum(pi, floor)), 0)
        A = torch.where(q > 0, torch.log(q / torch.maximum(pi, floor)), 0)

    G = torch.zeros(2, C, D, **double)
    G[0, :, live] = 2 / (L * T[live]) * (P.square().sum(0) - P)
    G[1, :, live] = 1 / (L * T[live]) * (A[:, None] - (A[:, None] * P).sum(0))
    dz = slope * (m @ G)
    dx = dz - share * dz.sum(1, keepdim=True) if center else dz
    return Answer(P, q, pi, torch.stack([gini, terms.sum()]), dx)
