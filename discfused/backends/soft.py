"""Soft labels: every row belongs to every class, so that the table is a matrix product.

The backend brings the product, in the full precision of float32 or float64, whatever autocast and
the TF32 switches say; the rest is plain PyTorch, and the terms and the gradient are those of hard
labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from discfused.backends.contract import Histogram, Members, Pull
from discfused.reference import PHI, ratio

Matmul = Callable[[Tensor, Tensor], Tensor]


def histogram(
    matmul: Matmul,
    features: Tensor,
    members: Members,
    activation: str,
    center: bool,
    mean: Tensor | None,
) -> Histogram:
    n = members.row_weight.unsqueeze(1)
    x = torch.where(n == 0, 0, features.to(n.dtype))  # such a row may hold NaN
    if center and mean is None:
        mean = ratio((n * x).sum(0), members.total)
    a = PHI[activation](x - mean if center else x)
    table = matmul(members.soft.T, a)
    size = x.square() if activation == "square" else x.abs()
    return Histogram(mean if center else None, table, (n * size).sum(0))


def row_gradient(matmul: Matmul, m: Tensor, table: Tensor, pull: Pull | None) -> Tensor:
    """m @ G [N, D]: the gradient of the activations. G is the table itself without a pull."""
    G = table if pull is None else table_gradient(table, pull)
    return matmul(m, G)


def table_gradient(table: Tensor, pull: Pull) -> Tensor:
    """G as in contract.Pull. 1 / (L T) last: next to 1 / T it overflows."""
    outer, inverse, squares, projection = pull.feature_coef[:4]
    g1, g2 = pull.grad_gini * pull.gini_weight, pull.grad_kl * pull.kl_weight
    G = 2 * g1 * (squares - table * inverse) + g2 * (pull.slot_coef.unsqueeze(1) - projection)
    return torch.where(outer == 0, 0, outer * G)
