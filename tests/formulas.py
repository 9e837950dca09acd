"""The formulas of the terms and their gradients, without autograd."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

PHI = {  # and its derivative
    "abs": (torch.abs, torch.sign),
    "relu": (lambda x: x.clamp(min=0), lambda x: (x > 0).to(x)),
}


class Answer(NamedTuple):
    P: Tensor  # [C, L] of the live features
    q: Tensor  # [C]
    pi: Tensor  # [C]
    values: Tensor  # [2]: the impurity term, kl
    gradients: Tensor  # [2, N, D]


def answer(
    x: Tensor, target: Tensor, num_classes: int, *, activation="abs", impurity="gini",
    prior="batch", sample_weight=None,
) -> Answer:  # fmt: skip
    (N, D), C, double = x.shape, num_classes, {"dtype": torch.float64}
    m = target if target.is_floating_point() else (target[:, None] == torch.arange(C)).double()
    if sample_weight is not None:
        m = m * sample_weight[:, None]
    n = m.sum(0)
    mean = m / torch.where(n == 0, 1, n)  # [N, C]: the part of its class that each row is
    phi, slope = (function(x) for function in PHI[activation])
    H = mean.T @ phi
    T = H.sum(0)
    live = T > 0
    L, K = int(live.sum()), int((n > 0).sum())

    if isinstance(prior, str):
        prior = n if prior == "batch" else torch.ones(C, **double)
    pi = prior / prior.sum() if prior.any() else prior
    P = H[:, live] / T[live]
    if K == 0:
        return Answer(P, torch.zeros(C, **double), pi, torch.zeros(2, **double),
                      torch.zeros(2, N, D, **double))  # fmt: skip
    squares = P.square().sum(0)
    if impurity == "gini":
        term, factor = ((1 - squares).sum() + D - L) / D, torch.ones(L, **double)
    elif K > 1:
        term = ((-squares.log() / math.log(K)).sum() + D - L) / D
        factor = 1 / (squares * math.log(K))
    else:
        term, factor = torch.zeros((), **double), torch.zeros(L, **double)
    q = P.mean(1) if L else torch.zeros(C, **double)
    floor = torch.tensor(1e-10, **double)
    kl = torch.where(pi > 0, pi * torch.log(pi / torch.maximum(q, floor)), 0).sum()
    A = torch.where((pi > 0) & (q > floor), -pi / q, 0)

    G = torch.zeros(2, C, D, **double)
    G[0, :, live] = 2 / (D * T[live]) * factor * (squares - P)
    G[1, :, live] = 1 / (L * T[live]) * (A[:, None] - (A[:, None] * P).sum(0)) if L else 0.0
    values = torch.stack([term, kl if L else torch.zeros((), **double)])
    return Answer(P, q, pi, values, slope * (mean @ G))
