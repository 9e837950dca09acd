"""A torchmetrics metric: how discriminative features are over a whole data set."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from discfused import _batch, _inputs, _terms
from discfused._class_sums import ClassSums
from discfused._discriminability import Discriminability, discriminability
from discfused._extras import needed_by

with needed_by("discfused.metrics"):
    from torchmetrics import Metric

__all__ = ["Discriminability", "FeatureDiscriminability", "feature_discriminability"]


class FeatureDiscriminability(Metric):
    """Discriminability of the class sums  S_cj = sum_i m_ic phi(x_ij),  n_c = sum_i m_ic

    over all batches and processes. `Discriminability` has the formulas. The sums of all parts add
    up, so the result equals that of one batch with all rows, up to rounding. The metric keeps C * D
    + C + 3 numbers for any number of rows. They are part of the state_dict.

        metric = FeatureDiscriminability(num_classes=10, num_features=512)
        for features, target in batches:
            metric.update(features, target)
        found = metric.compute()
        found.mean_gini, found.strongest_class, found.summary()

    Args:
        num_classes: C.
        num_features: D. Needed for processes without a batch.
        ignore_index, activation, feature_dim, check_labels, backend, prior: as in `disc_terms`.
        kwargs: the keywords of torchmetrics.Metric (process_group, sync_on_compute ...).

    The sums are float32. Call `set_dtype(torch.float64)` for float64, as with any metric.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        IndexError: a label is out of range (CPU tensors).
        ImportError: torchmetrics is missing.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    table: Tensor
    sizes: Tensor
    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        ignore_index: int = -100,
        activation: str = "abs",
        prior: str | Tensor = "batch",
        feature_dim: int = 1,
        check_labels: str = "async",
        backend: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_classes = _inputs.positive("num_classes", num_classes)
        self.num_features = _inputs.positive("num_features", num_features)
        self._options = _inputs.options(
            ignore_index, activation, feature_dim, check_labels, backend
        )
        device = prior.device if isinstance(prior, Tensor) else torch.device("cpu")
        _inputs.prior(prior, num_classes, torch.float32, device)
        if isinstance(prior, Tensor):
            self.register_buffer("prior", prior, persistent=False)
        else:
            self.prior = prior
        for name, shape in (
            ("table", (num_classes, num_features)),
            ("sizes", (num_classes,)),
            ("counts", (3,)),
        ):
            self.add_state(name, torch.zeros(shape), dist_reduce_fx="sum", persistent=True)

    def update(self, features: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            features: [N, D] or [N, D, ...], any float dtype. Further dimensions are reduced by phi
                and then the mean.
            target: [N] class indices of an integer dtype, or [N, C] class probabilities.
            sample_weight: [N], >= 0.
        """
        sums = _sums(features, target, self.num_classes, self._options, sample_weight)
        (table,) = sums.tables
        if table.shape[1] != self.num_features:
            raise ValueError(
                f"features have {table.shape[1]} features in dimension "
                f"{self._options.feature_dim}, expected num_features, which is "
                f"{self.num_features}: see feature_dim"
            )
        # Not in place: in a model in half precision, the states become float32 again.
        self.table = self.table + table
        self.sizes = self.sizes + sums.sizes
        self.counts = self.counts + sums.counts

    def compute(self) -> Discriminability:
        """The result for all batches so far, of all processes."""
        return discriminability(
            ClassSums((self.table,), self.sizes, self.counts), self.prior, self._options
        )

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """As Metric, which removes all dimensions of a tensor with one number: C or D may be 1."""
        squeezed = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def shaped() -> Discriminability:
            found: Discriminability = squeezed()
            return found.reshaped(self.num_classes, self.num_features)

        return shaped


def feature_discriminability(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    activation: str = "abs",
    prior: str | Tensor = "batch",
    feature_dim: int = 1,
    check_labels: str = "async",
    backend: str | None = None,
) -> Discriminability:
    """Discriminability of one batch; `Discriminability` has the formulas. No gradient.

    Args, Raises: as in `disc_terms`, for one features tensor.
    """
    options = _inputs.options(ignore_index, activation, feature_dim, check_labels, backend)
    C = _inputs.positive("num_classes", num_classes)
    sums = _sums(features, target, C, options, sample_weight)
    return discriminability(sums, prior, options)


def _sums(
    features: Tensor,
    target: Tensor,
    C: int,
    options: _inputs.Options,
    sample_weight: Tensor | None,
) -> ClassSums:
    with torch.no_grad():
        layer, target = _batch.checked_layer(features, target, C, sample_weight, options)
        return _terms.class_sums(layer, target, C, None, sample_weight, options, torch.float32)
