"""What a backend must provide: three stages around the [S, D] table of class histograms.

    members    target, weights      -> which slot every row belongs to, and how much it counts
    forward    features, members    -> penalty, gini, kl, and what backward needs of them
    gradient   features, that       -> d loss / d features [N, D]

and the table itself for those who ask for it: histogram. A backend that keeps the table in memory
makes forward of two stages (ThroughTable):

    histogram  features, members    -> mean [D], table [S, D], magnitude [D]
    terms      table                -> penalty, gini, kl, and what backward needs of them

Everything per feature goes through the table, so sums over parts of a batch (the ranks of a process
group, say) can be added between those two. Symbols as everywhere: N samples, D features,
C classes, S slots. A slot is a class (S = C) or, for hard labels with C > N, a class that is
present in the batch (S = N; slots left over stay empty), so that memory and time do not depend on
C.

`acc` is the accumulation dtype: float64 for float64 features, else float32. Every sum has a fixed
order: the same bits on every run and for every number of threads.
"""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("relu", "abs", "square", "softplus", "sigmoid")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ordered_sum(values: Tensor) -> Tensor:
    """The sum of a vector. PyTorch's own splits a long one by the number of threads."""
    block = 1024
    return F.pad(values, (0, -values.shape[0] % block)).view(-1, block).sum(1).sum()


class Labels(NamedTuple):
    """What the door lets through about the rows: everything but the features."""

    target: Tensor  # [N] int64 class indices or [N, C] float class probabilities, any strides
    weight: Tensor | None  # [C], any real dtype
    sample_weight: Tensor | None  # [N], any real dtype
    num_classes: int
    ignore_index: int


class Settings(NamedTuple):
    """What the terms depend on beside tensors."""

    activation: str
    center: bool
    reverse: bool  # KL(q || pi) instead of KL(pi || q)
    eps: float


# Functions, not properties of the tuples: torch.compile of PyTorch 2.6 cannot trace those.
def is_soft(labels: Labels) -> bool:
    return labels.target.is_floating_point()


def dead_threshold(settings: Settings) -> float:
    """A feature is dead if its mass is at most this share of its magnitude.

    Squares compare with squares, so that eps means the same for every activation and the scale of a
    feature does not matter.
    """
    return settings.eps**2 if settings.activation == "square" else settings.eps


class Members(NamedTuple):
    """Who belongs where. Hard labels fill `slot`; soft ones fill `soft` and leave `slot` empty."""

    slot: Tensor  # [N] int32: the row's slot, -1 for a row that does not count; [0] for soft labels
    row_weight: Tensor  # [N] acc: n_i = sum_c m_ic
    total: Tensor  # [] acc: sum_i n_i
    slot_class: Tensor  # [S] int64: the class of a slot, -1 for an empty slot
    share: Tensor  # [S] acc: sum_i m_ic / sum_i n_i, the distribution of the classes in the batch
    soft: Tensor | None = None  # [N, C] acc: m itself, for soft labels
    extra: Any = None  # what a backend's members stage keeps for its own histogram stage


class Histogram(NamedTuple):
    mean: Tensor | None  # [D] acc: mu; None when features are not centred
    table: Tensor | None  # [S, D] acc: H, the sum of activations of every slot
    # [D] acc: sum_i n_i |x_ij|, or sum_i n_i x_ij^2 for the square activation. Of the same power of
    # x as the mass of a feature, which is compared with it to tell whether the feature is dead.
    magnitude: Tensor | None = None
    # [S, D] acc: F_cj = sum_i m_ic phi'(x_ij - mu_j) = -d H_cj / d mu_j, where it was asked for
    slope: Tensor | None = None
    carry: Any = None  # sums that table and slope still lack: terms adds them, or complete


class Terms(NamedTuple):
    penalty: Tensor  # [] acc: gini_weight * gini + kl_weight * kl
    gini: Tensor  # [] acc
    kl: Tensor  # [] acc
    # [coef_rows, D] acc, all 0 for a dead feature:
    # 0-2  1 / (L T_j), 1 / T_j, sum_c P_cj^2 = squares
    # 3    sum_c A_c P_cj = projection
    # 4-5  squares sum_c F_cj - sum_c F_cj P_cj, sum_c A_c F_cj - projection sum_c F_cj;
    #      of no meaning if the histogram has no slope
    feature_coef: Tensor
    slot_coef: Tensor  # [S] acc: A_c


class Pull(NamedTuple):
    """What turns the table into the table's gradient:

    G_cj = 1 / (L T_j) * (2 grad_gini (sum_k P_kj^2 - P_cj) + grad_kl (A_c - sum_k A_k P_kj))
         = u_j + v_j H_cj + w_j A_c

    The correction for the mean needs one number of each feature, summed over the rows k of class
    c_k. Forward has prepared it (rows 4 and 5) where it kept the slope of the table:

    sum_k n_k phi'(x_kj - mu_j) G_{c_k j} = sum_c F_cj G_cj
                                          = 1 / (L T_j) * (2 grad_gini row4_j + grad_kl row5_j)
    """

    feature_coef: Tensor  # [coef_rows, D], from Terms
    slot_coef: Tensor  # [S], from Terms
    grad_gini: Tensor  # [] acc: d loss / d gini, before gini_weight
    grad_kl: Tensor  # [] acc: d loss / d kl, before kl_weight
    gini_weight: float
    kl_weight: float
    slope: bool = False  # whether the histogram had a slope: rows 4 and 5 are there to be read


class Backend(Protocol):
    name: str
    device_type: str  # of the tensors it takes
    coef_rows: int  # of Terms.feature_coef
    keeps_table: bool  # whether forward gives the table to gradient, or gradient makes its own

    def unavailable(self) -> str | None:
        """None if this backend can run here, else why not and what to do."""

    def members(
        self,
        labels: Labels,  # hard ones; weights already of dtype `dtype`
        slots: int,  # S: num_classes, or N where only present classes get a slot
        features: Tensor,  # a backend may start on sums of them that need no slots
        activation: str,
    ) -> Members:
        """A row with weight 0 does not count (slot -1), like an ignored one.

        Raises IndexError for a label out of range; on a GPU maybe later, because the host does not
        wait for it.
        """

    def keeps_slope(self, features: Tensor, num_classes: int) -> bool:
        """Whether forward is to keep the slope of the table, so that backward need not look at
        centred features with hard labels twice. Depends on shapes and dtypes alone."""

    def forward(
        self,
        features: Tensor,  # [N, D], any strides, any float dtype
        members: Members,
        prior: Tensor,  # [S] acc: pi of every slot
        absent: Tensor | None,  # [] acc: the forward KL of the classes without a slot
        settings: Settings,
        gini_weight: float,
        kl_weight: float,
        slope: bool,  # to be kept; never asked of a backend whose keeps_slope says no
        save: bool,  # in place of a table that is not kept, forward may save what serves gradient
    ) -> tuple[Terms, Histogram]:
        """Of the histogram, what gradient needs: the mean, and the table if keeps_table."""

    def histogram(
        self, features: Tensor, members: Members, activation: str, center: bool
    ) -> Histogram:
        """The table, for those who ask for it, and the mean. Of the same features and activation as
        members was given."""

    def complete(self, histogram: Histogram) -> None:
        """Add the carry to table and slope, in place. Only of a backend that leaves a carry."""

    def gradient(
        self,
        features: Tensor,
        members: Members,  # slot_class, share and extra may be missing here
        mean: Tensor | None,
        # [S, D]: H, or what forward saved, or None; the table's gradient itself if `pull` is None
        table: Tensor | None,
        activation: str,
        pull: Pull | None,
    ) -> Tensor:
        """[N, D], contiguous, in the dtype of `features`."""


class ThroughTable:
    """forward in two stages, for a backend that keeps the table in memory."""

    keeps_table = True

    def forward(
        self,
        features: Tensor,
        members: Members,
        prior: Tensor,
        absent: Tensor | None,
        settings: Settings,
        gini_weight: float,
        kl_weight: float,
        slope: bool,
        save: bool,
    ) -> tuple[Terms, Histogram]:
        activation, center = settings.activation, settings.center
        histogram = self.histogram(features, members, activation, center, slope=slope)
        threshold = dead_threshold(settings)
        terms = self.terms(
            histogram, prior, absent, settings.reverse, threshold, gini_weight, kl_weight
        )
        return terms, histogram

    def histogram(
        self,
        features: Tensor,
        members: Members,
        activation: str,
        center: bool,
        mean: Tensor | None = None,  # [D] acc: given instead of computed
        slope: bool = False,
    ) -> Histogram:
        raise NotImplementedError

    def terms(
        self,
        histogram: Histogram,
        prior: Tensor,
        absent: Tensor | None,
        reverse: bool,
        eps: float,  # dead: T_j <= eps * magnitude_j
        gini_weight: float,
        kl_weight: float,
    ) -> Terms:
        """A carry of the histogram is added to table and slope, in place."""
        raise NotImplementedError
