"""Statistics of every feature, and of all features together, from class sums."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from discfused import _inputs, _terms
from discfused._class_sums import ClassSums


class Discriminability(NamedTuple):
    """P_cj = H_cj / T_j, T_j = sum_c H_cj: the class distribution of feature j

    H is the result of `discfused.class_histogram`, for C classes and D features. K classes have
    samples. Numbers have the dtype of the sums. A dead feature (T_j = 0) has gini 1, and 0 for the
    other numbers. A feature with a P that is not finite has no strongest class.
    """

    # of each feature, [D]
    mass: Tensor  # T_j
    gini: Tensor  # 1 - sum_c P_cj^2: 0 for one class, 1 - 1/K for equal P
    effective_classes: Tensor  # 1 / sum_c P_cj^2: from 1 to K
    selectivity: Tensor  # (mu_max - mu_rest) / (mu_max + mu_rest), mu_max the largest class mean
    # H_cj and mu_rest the mean of the other K - 1: the class selectivity index of Morcos et al.
    # 2018, from 0 for equal means to 1 for one class
    strongest_class: Tensor  # argmax_c P_cj, int64; -1 for none
    strongest_share: Tensor  # max_c P_cj
    live: Tensor  # T_j > 0, bool
    # of each class, [C]
    samples_per_class: Tensor  # n_c = sum_i m_ic
    features_per_class: Tensor  # number of features with this strongest class, int64
    # of all features
    mean_gini: Tensor  # `gini` of disc_terms: dead features count as 1
    kl: Tensor  # `kl` of disc_terms, to the distribution of the classes
    classes_without_feature: Tensor  # number of the K classes without a feature, int64
    histogram: Tensor  # H, [C, D]

    def shares(self) -> Tensor:
        """P, [C, D]."""
        return _shares(self.histogram, self.mass, self.live)

    def order(self) -> Tensor:
        """Features ordered by strongest class, then by purity; without features that have none."""
        key = torch.where(
            self.strongest_class < 0, torch.inf, self.strongest_class - self.strongest_share
        )
        return key.argsort(stable=True)[: int((self.strongest_class >= 0).sum())]

    def summary(self) -> dict[str, float]:
        """Numbers for all features together, for logging. Means are over the live features;
        mean_gini is over all."""
        live = self.live
        numbers = {
            "mean_gini": self.mean_gini,
            "mean_effective_classes": self.effective_classes[live].mean(),
            "mean_selectivity": self.selectivity[live].mean(),
            "kl": self.kl,
            "live_share": live.float().mean(),
            "classes_without_feature": self.classes_without_feature,
        }
        values = torch.stack([number.double().cpu() for number in numbers.values()])
        return dict(zip(numbers, values.tolist(), strict=True))

    def cpu(self) -> Discriminability:
        return Discriminability(*(tensor.cpu() for tensor in self))

    def reshaped(self, C: int, D: int) -> Discriminability:
        """The same numbers in the shapes above."""
        shapes = [(D,)] * 7 + [(C,)] * 2 + [()] * 3 + [(C, D)]
        return Discriminability(*map(Tensor.reshape, self, shapes))


def discriminability(
    sums: ClassSums, prior: str | Tensor, options: _inputs.Options
) -> Discriminability:
    """The statistics of one layer."""
    (H,), n = sums.histograms(), sums.sizes
    K = (n > 0).sum()
    T = H.sum(0)
    live = ~torch.isinf(1 / T)  # NaN is not dead
    P = _shares(H, T, live)
    squares = P.square().sum(0)
    share, strongest = P.max(0)
    strongest = torch.where(live & share.isfinite(), strongest, -1)
    mu_max = H.max(0).values
    mu_rest = (T - mu_max) / (K - 1).clamp(min=1)
    selectivity = (mu_max - mu_rest) / torch.where(live, mu_max + mu_rest, 1)
    features = torch.zeros_like(n, dtype=torch.int64)
    features = features.index_add(0, strongest.clamp(min=0), (strongest >= 0).long())
    _, mean_gini, kl = _terms.terms_of_sums(sums, prior, options, 1.0, 1.0)
    return Discriminability(
        mass=T,
        gini=torch.where(live, 1 - squares, 1),
        effective_classes=torch.where(live, 1 / squares, 0),
        selectivity=torch.where(live, selectivity, 0).clamp(min=0),
        strongest_class=strongest,
        strongest_share=share,
        live=live,
        samples_per_class=n,
        features_per_class=features,
        mean_gini=mean_gini,
        kl=kl,
        classes_without_feature=((n > 0) & (features == 0)).sum(),
        histogram=H,
    )


def _shares(H: Tensor, T: Tensor, live: Tensor) -> Tensor:
    return torch.where(live, H / torch.where(live, T, 1), 0)
