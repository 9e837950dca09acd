"""The contract of a backend: six operators, with schemas in `discfused/_ops.py`.

    rows                target                 -> assignment of rows to classes, and class sizes
    terms               features, rows, prior  -> penalty, gini, kl, kept
    gradient            features, rows, kept   -> d loss / d features
    histogram           features, rows         -> H [C, D]
    histogram_gradient  d loss / d H           -> d loss / d features
    sizes               rows, N, C             -> n [C]

`rows` runs once for each call of the loss, for any number of layers, and serves forward and
backward. `terms` has two stages with the table H between them. The second stage uses only H and the
class sizes, so the sums of parts of a batch can be added there.

Only the same backend reads the tensors that `rows` and `terms` return for later stages. Their
shapes depend only on N, D, C and dtypes (the `empty_*` functions give them to torch.compile).

Symbols: N samples, D features, C classes, S slots. A slot is a class that can be in the batch. For
hard labels S = min(N, C), so memory does not depend on C if most classes are absent. For soft
labels S = C.

With phi the activation, m_ic the membership and n_c = sum_i m_ic:

    H_cj = sum_i m_ic phi(x_ij) / n_c        T_j = sum_c H_cj        P_cj = H_cj / T_j
    live: 1 / T_j is finite                  s2_j = sum_c P_cj^2     q_c = mean of P_cj over live j
    gini = mean over all j of (1 - s2_j if live else 1)
    collision = mean over all j of (-log(s2_j) / log K if live else 1), K = classes with n_c > 0
    kl = sum_c pi_c log(pi_c / max(q_c, 1e-10))
    penalty = gini_weight * (gini or collision) + kl_weight * kl

    f_j = 1 for gini, 1 / (s2_j log K) for collision
    A_c = -pi_c / q_c, 0 where q_c is clamped
    G_cj = 1 / T_j * (g1 * 2 / D * f_j * (s2_j - P_cj) + g2 / L * (A_c - sum_k A_k P_kj)), live j
    d loss / d x_ij = phi'(x_ij) * sum_c m_ic / n_c * G_cj

g1 and g2 are the upstream gradients: g1 = grad_penalty * gini_weight + grad_gini, likewise g2; an
upstream gradient that is None is 0. All terms and gradients are 0 if no row counts; collision is 0
if K < 2. A row counts unless its label is ignore_index or its weight is 0. Rows that do not count
may hold NaN. A value in a row that counts and is not finite makes the terms NaN.

Every sum has a fixed order, so results are bitwise equal on every run and for any number of
threads.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    name: str

    @property
    def device_type(self) -> str:
        """The device type of its tensors."""

    def unavailable(self) -> str | None:
        """None if this backend can run here, else the reason and the fix."""

    def empty_rows(
        self, target: Tensor, num_classes: int, dtype: torch.dtype, weighted: bool
    ) -> Sequence[Tensor]:
        """Tensors of the shapes and dtypes that `rows` returns. weighted: with sample weights."""

    def empty_kept(
        self, features: Tensor, rows: Sequence[Tensor], num_classes: int
    ) -> Sequence[Tensor]:
        """Tensors of the shapes and dtypes that `terms` keeps for `gradient`."""


def hard_slots(samples: int, num_classes: int) -> int:
    """S for hard labels."""
    # A comparison N <= C would become a guard of torch.compile, with a graph for each outcome.
    slots: int = torch.sym_min(num_classes, samples)
    return slots


def by_class(values: Tensor, slot_class: Tensor, num_classes: int) -> Tensor:
    """[S, ...] of slots as [C, ...] of classes. slot_class is -1 for a slot without a class."""
    line = torch.where(slot_class < 0, num_classes, slot_class)  # an extra line for these
    lines = values.new_zeros((num_classes + 1, *values.shape[1:]))
    return lines.index_copy_(0, line, values)[:num_classes]
