"""The two terms in plain PyTorch, differentiated by autograd. Tests compare all backends with it.

It is written for readers, not for speed. The loss is that of *Discriminability-enforcing loss to
improve representation learning* (arXiv 2202.07073), as its authors implement it. Sample weights,
soft labels, the collision impurity, dead features and absent classes are ours.

Symbols: N samples, D features, C classes.
"""

import torch
from torch import Tensor

from discfused._definitions import PROBABILITY_FLOOR, accumulation_dtype, activate


def membership(
    target: Tensor,
    sample_weight: Tensor | None,
    num_classes: int,
    ignore_index: int,
    dtype: torch.dtype,
) -> Tensor:
    """m_ic = s_i 1[y_i = c] (class indices) or s_i t_ic (class probabilities): [N, C]."""
    if target.is_floating_point():
        m = target.detach().to(dtype)
    else:
        counts = (target != ignore_index).unsqueeze(1)
        classes = torch.arange(num_classes, device=target.device)
        m = ((target.unsqueeze(1) == classes) & counts).to(dtype)
    if sample_weight is not None:
        # where: 0 times a weight of NaN would be NaN
        m = torch.where(m == 0, m, m * sample_weight.to(dtype).unsqueeze(1))
    return m


def class_histogram(features: Tensor, m: Tensor, activation: str) -> Tensor:
    """H_cj = sum_i m_ic phi(x_ij) / n_c with n_c = sum_i m_ic: [C, D]. 0 for an absent class."""
    x = features.to(accumulation_dtype(features.dtype))
    counts = (m != 0).any(1, keepdim=True)
    x = torch.where(counts, x, 0)  # rows that do not count may hold NaN
    n = m.sum(0).unsqueeze(1)  # [C, 1]
    # Under autocast the matrix product would be half precision. "meta" has no autocast.
    device = "cpu" if x.device.type == "meta" else x.device.type
    with torch.autocast(device, enabled=False):
        return m.T @ activate(x, activation) / torch.where(n == 0, 1, n)


def disc_terms(
    features: Tensor, m: Tensor, prior: Tensor | None, activation: str, impurity: str
) -> tuple[Tensor, Tensor]:
    """The impurity term and kl. `prior`: [C] with sum 1; None for the distribution of the batch."""
    H = class_histogram(features, m, activation)
    T = H.sum(0)  # [D]
    live = ~torch.isinf(1 / T)  # NaN is not dead
    P = torch.where(live, H / torch.where(live, T, 1), 0)  # [C, D]

    squares = P.square().sum(0)
    n = m.sum(0)  # [C]: size of each class
    if impurity == "gini":
        term = torch.where(live, 1 - squares, 1).mean()
    else:  # Renyi entropy of order 2, divided by its maximum for the classes of the batch
        present = (n > 0).sum().to(H.dtype)
        entropy = -torch.where(live, squares, 1).log() / present.clamp(min=2).log()
        alone = 0 * squares  # one class: 0, or NaN for features that are NaN
        term = torch.where(present < 2, alone, torch.where(live, entropy, 1)).mean()

    q = P.sum(1) / live.sum().clamp(min=1)  # [C]: distribution of the features over the classes
    pi = n / torch.where(n.sum() == 0, 1, n.sum()) if prior is None else prior
    absent = pi == 0  # these terms are 0, and their gradients are 0
    ratio = torch.where(absent, 1, pi) / torch.where(absent, 1, q).clamp(min=PROBABILITY_FLOOR)
    kl = torch.where(absent, 0, pi * ratio.log()).sum()
    kl = torch.where(live.any(), kl, 0)

    # Both terms are 0 if no row counts.
    some = (n != 0).any()
    term, kl = torch.where(some, term, 0), torch.where(some, kl, 0)
    # Rounding can make them slightly negative.
    return term.clamp(min=0), kl.clamp(min=0)
