"""The two terms in plain PyTorch, differentiated by autograd: the oracle of every parity test.

Written to be checked by hand against the formulas, never to be fast. The paper gives the idea
(arXiv 2202.07073: every feature should speak for one class; the features together should speak for
the classes in proportion); the formulas are this project's reading of its abstract.

Symbols: N samples, D features, C classes; x = features [N, D].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from discfused.backends.contract import (
    Labels,
    Settings,
    accumulation_dtype,
    dead_threshold,
    is_soft,
)

PROBABILITY_FLOOR = 1e-8  # the denominator inside a logarithm is never smaller

# A feature *fires* for a sample by phi(x - mean) >= 0.
PHI = {
    "relu": F.relu,
    "abs": torch.abs,
    "square": torch.square,
    # threshold: PyTorch's shortcut softplus(x) = x for x > 20 is off by 2e-9, seen in float64
    "softplus": lambda x: F.softplus(x, threshold=40),
    "sigmoid": torch.sigmoid,
}


def membership(labels: Labels, dtype: torch.dtype) -> Tensor:
    """m_ic = w_c s_i 1[y_i = c] (hard labels) or w_c s_i t_ic (soft labels): [N, C]."""
    target, weight, sample_weight, num_classes, ignore_index = labels
    if is_soft(labels):
        m = target.to(dtype)
    else:
        classes = torch.arange(num_classes, device=target.device)
        counts = (target != ignore_index).unsqueeze(1)
        m = ((target.unsqueeze(1) == classes) & counts).to(dtype)
    # where, not the product alone: a weight that is NaN says nothing about the other rows
    if weight is not None:
        m = torch.where(m == 0, m, m * weight.to(dtype))
    if sample_weight is not None:
        m = torch.where(m == 0, m, m * sample_weight.to(dtype).unsqueeze(1))
    return m


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is 0 because nothing counts."""
    return numerator / torch.where(denominator == 0, 1, denominator)


def histogram(features: Tensor, m: Tensor, activation: str, center: bool) -> tuple[Tensor, Tensor]:
    """H_cj = sum_i m_ic phi(x_ij - mu_j): [C, D], and the magnitude sum_i n_i |x_ij|: [D].

    The magnitude tells below which mass a feature is dead; it is sum_i n_i x_ij^2 if phi squares.
    """
    n = m.sum(1, keepdim=True)  # [N, 1]: how much each row counts
    x = features.to(accumulation_dtype(features.dtype))
    x = torch.where(n == 0, 0, x)  # a row that does not count may hold anything, NaN included
    mean = ratio((n * x).sum(0), n.sum()) if center else 0
    # A matrix product under autocast would round to half precision.
    with torch.autocast(x.device.type, enabled=False):
        table = m.T @ PHI[activation](x - mean)
    size = x.detach().square() if activation == "square" else x.detach().abs()
    magnitude = (n * size).sum(0)
    return table, magnitude


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum_c p_c log(p_c / q_c), where terms with p_c = 0 are 0, gradient included."""
    absent = p == 0
    safe = torch.where(absent, 1, p)
    return torch.where(absent, 0, safe * torch.log(safe / q.clamp(min=PROBABILITY_FLOOR))).sum()


def terms(
    table: Tensor, magnitude: Tensor, prior: Tensor, reverse: bool, threshold: float
) -> tuple[Tensor, Tensor]:
    """gini = mean_j (1 - sum_c P_cj^2) and kl = KL(pi || mean_j P_cj), over live features j."""
    # An infinite feature must not pass for a dead one: infinity times 0 is NaN, and NaN stays.
    total = table.sum(0) + 0 * magnitude
    # One that is no normal number is dead, too: its reciprocal could overflow.
    live = ~(total <= threshold * magnitude + torch.finfo(total.dtype).tiny)
    count = live.sum()
    P = torch.where(live, table / torch.where(live, total, 1), 0)  # [C, D]

    impurity = torch.where(live, 1 - P.square().sum(0), 0)
    gini = ratio(impurity.sum(), count)

    q = ratio(P.sum(1), count)  # [C]: distribution of the features over the classes
    kl = divergence(q, prior) if reverse else divergence(prior, q)
    kl = torch.where(count == 0, 0, kl)

    # Both are never negative; rounding can leave them a hair below 0.
    return gini.clamp(min=0), kl.clamp(min=0)


def class_histogram(features: Tensor, labels: Labels, activation: str, center: bool) -> Tensor:
    m = membership(labels, accumulation_dtype(features.dtype))
    return histogram(features, m, activation, center)[0]


def disc_terms(
    features: Tensor, labels: Labels, prior: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """gini, kl. `prior`: [C], summing to 1; None for the distribution of the batch's classes."""
    m = membership(labels, accumulation_dtype(features.dtype))
    table, magnitude = histogram(features, m, settings.activation, settings.center)
    if prior is None:
        prior = ratio(m.sum(0), m.sum())
    return terms(table, magnitude, prior, settings.reverse, dead_threshold(settings))
