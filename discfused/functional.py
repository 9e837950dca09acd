"""The public functions: check at the door, choose a backend, apply.

Every function states its formula; the symbols are N samples, D features, C classes. The idea is
the paper's (arXiv 2202.07073, known to this project by its abstract), the formulas are ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from discfused import (  # noqa: F401 (_ops registers)
    _autograd,
    _cross_entropy,
    _inputs,
    _ops,
    backends,
    reference,
)
from discfused.backends.contract import Labels, Settings, accumulation_dtype, is_soft

# The heaviest of those tried that did no harm in any measurement: see discfused/recipes/README.md.
GINI_WEIGHT = 0.1
KL_WEIGHT = 0.1


class DiscTerms(NamedTuple):
    """Both scalars, float32 (float64 for float64 features)."""

    gini: Tensor  # in [0, 1 - 1/C]: 0 when every live feature fires for one class only
    kl: Tensor  # >= 0, in nats: 0 when the features speak for the classes in proportion


class LossTerms(NamedTuple):
    """The parts of a loss, unweighted and detached: for logging, without a host sync."""

    ce: Tensor
    gini: Tensor
    kl: Tensor


def fused_disc_loss(
    logits: Tensor,
    target: Tensor,
    features: Tensor | Sequence[Tensor] | None = None,
    *,
    gini_weight: float = GINI_WEIGHT,
    kl_weight: float = KL_WEIGHT,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    activation: str = "relu",
    center: bool = True,
    prior: str | Tensor = "batch",
    kl_direction: str = "forward",
    feature_dim: int = 1,
    eps: float = 1e-6,
    process_group=None,
    backend: str | None = None,
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, LossTerms]:
    """loss = cross_entropy(logits, target) + gini_weight * gini + kl_weight * kl

    The first two arguments are those of `torch.nn.functional.cross_entropy`; the terms are those of
    `disc_terms`. With both weights 0 the result is the cross-entropy, and features may be None.

    Args:
        logits: [N, C], any float dtype. Without features, any shape that cross_entropy takes.
        target: [N] class indices of an integer dtype, or [N, C] class probabilities.
        features: [N, D] or [N, D, ...] (averaged over the rest), any float dtype, any strides; or
            a list of such tensors, one for each layer, over which the terms are averaged.
        gini_weight, kl_weight: finite, >= 0.
        weight: [C], of the classes, >= 0: in cross-entropy and in the class histograms.
        ignore_index: rows with this label do not count anywhere.
        reduction: "mean"; "sum" (summed cross-entropy, and the terms times the number of rows that
            are not ignored, each counted sample_weight times); "none" ([N]: the terms are added to
            every element, so that the mean is the "mean" loss if nothing is ignored or weighted).
        label_smoothing: in [0, 1], of cross-entropy alone.
        sample_weight: [N], >= 0. Multiplies a row's cross-entropy and its part in the histograms;
            "mean" divides by the weighted count: a weight of k is the row repeated k times.
        activation, center, prior, kl_direction, feature_dim, eps, process_group, backend: see
            `disc_terms`.
        return_terms: also return LossTerms(ce, gini, kl), unweighted and detached.

    Returns:
        A float32 scalar (float64 for float64 input; [N] for "none"), also under autocast.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        IndexError: a label is out of range (CPU tensors).
        RuntimeError: the named backend cannot run here; or a fused backend is differentiated twice.
    """
    _inputs.non_negative("gini_weight", gini_weight)
    _inputs.non_negative("kl_weight", kl_weight)
    _inputs.one_of("reduction", reduction, _inputs.REDUCTIONS)
    _inputs.label_smoothing(label_smoothing)
    penalised = gini_weight > 0 or kl_weight > 0
    if features is None:
        if penalised:
            raise ValueError(
                "features is None, expected [N, D]: pass the features, attach the criterion to "
                "the model (FusedDiscLoss.attach), or set gini_weight = kl_weight = 0"
            )
        target = _inputs.loss_arguments(logits, target, weight, sample_weight, ignore_index)
        ce = _cross_entropy.cross_entropy(
            logits, target, weight, ignore_index, reduction, label_smoothing, sample_weight
        )
        absent = ce.new_zeros(())
        return (ce, LossTerms(ce.detach(), absent, absent)) if return_terms else ce

    num_classes = _inputs.logits(logits)
    options = _inputs.Options(
        ignore_index, activation, center, kl_direction, feature_dim, eps, backend, process_group
    )
    weights = gini_weight, kl_weight
    (penalty, gini, kl), labels = _layers(
        features, target, num_classes, weight, sample_weight, prior, options, weights, penalised
    )
    _inputs.same_device("logits", logits, labels.target.device)
    _inputs.same_length("logits", logits, labels.target)
    if not is_soft(labels):  # soft ones keep the gradient that cross-entropy gives them
        target = labels.target
        if target.device.type != "cpu":
            target = _cross_entropy.in_range(target, num_classes, ignore_index)
    ce = _cross_entropy.cross_entropy(
        logits, target, weight, ignore_index, reduction, label_smoothing, sample_weight
    )
    loss = ce = ce.to(torch.promote_types(ce.dtype, penalty.dtype))
    if penalised:  # 0 * NaN would not be 0
        if reduction == "sum":
            penalty = penalty * _cross_entropy.count(labels, penalty.dtype)
        loss = ce + penalty
    if not return_terms:
        return loss
    return loss, LossTerms(ce.detach(), gini.detach(), kl.detach())


def disc_terms(
    features: Tensor | Sequence[Tensor],
    target: Tensor,
    num_classes: int,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    activation: str = "relu",
    center: bool = True,
    prior: str | Tensor = "batch",
    kl_direction: str = "forward",
    feature_dim: int = 1,
    eps: float = 1e-6,
    process_group=None,
    backend: str | None = None,
) -> DiscTerms:
    """gini = mean_j (1 - sum_c P_cj^2),   kl = KL(pi || mean_j P_cj)

    where P_cj = H_cj / sum_k H_kj is the probability of class c given that feature j fires, H the
    histogram of `class_histogram`, and j runs over the live features: those whose total mass
    sum_c H_cj exceeds eps * sum_i n_i |x_ij| (eps^2 * sum_i n_i x_ij^2 for "square"). Both are
    differentiable in the features, and 0 with zero gradient when no feature is live. Use them
    beside another base loss (focal, ArcFace ...).

    Args:
        features: [N, D] or [N, D, ...] (averaged over the rest), any float dtype, any strides; or
            a list of such tensors, over which the terms are averaged.
        target: [N] class indices of an integer dtype, or [N, C] class probabilities.
        num_classes: C. Never taken from target.max(), which would stall a GPU.
        weight: [C] class weights; sample_weight: [N]; both >= 0 and constants.
        ignore_index: rows with this label do not count.
        activation: how much a feature fires at x - mean: "relu", "abs", "square", "softplus",
            "sigmoid".
        center: measure a feature from its own mean over the batch (else from 0). Raw average-pooled
            ReLU maps are never off; measured from their mean they can be, and the terms help.
        prior: pi, the distribution of the classes: of the "batch", "uniform", or [C] tensor of
            non-negative numbers (divided by its sum).
        kl_direction: "forward" is KL(pi || q), "reverse" is KL(q || pi); natural logarithm, the
            denominator not below 1e-8.
        feature_dim: the dimension of `features` that counts features; -1 for tokens [N, T, D].
        eps: a feature with less mass than this share of its magnitude is dead: constant features
            are, up to rounding. So is one whose mass is no normal number (1e-38 in float32).
        process_group: not supported yet.
        backend: "reference", "cpu", "triton", "cuda"; None for the fastest that can run here.

    Returns:
        DiscTerms(gini, kl), float32 scalars (float64 for float64 features).

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        IndexError: a label is out of range (CPU tensors).
        RuntimeError: the named backend cannot run here; or a fused backend is differentiated twice.

    Source: the two terms are the paper's idea; centring, activations and everything about dead
    features, weights and absent classes are ours.
    """
    options = _inputs.Options(
        ignore_index, activation, center, kl_direction, feature_dim, eps, backend, process_group
    )
    (_, gini, kl), _ = _layers(
        features, target, num_classes, weight, sample_weight, prior, options, None, True
    )
    return DiscTerms(gini, kl)


def class_histogram(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    activation: str = "relu",
    center: bool = True,
    feature_dim: int = 1,
    backend: str | None = None,
) -> Tensor:
    """H_cj = sum_i m_ic phi(x_ij - mu_j),   mu_j = sum_i n_i x_ij / sum_i n_i,   n_i = sum_c m_ic

    How much of feature j fires for class c. m_ic = weight_c * sample_weight_i * 1[target_i = c] for
    class indices and weight_c * sample_weight_i * target_ic for class probabilities, 0 for ignored
    rows; mu = 0 with center=False; phi is the activation. Differentiable in the features.

    Args: as in `disc_terms`, for one features tensor.

    Returns:
        [C, D], float32 (float64 for float64 features).

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: as in `disc_terms`.
    """
    options = _inputs.Options(ignore_index, activation, center, feature_dim=feature_dim)
    x = _inputs.features(features, feature_dim)
    name = backends.resolve(x.device.type, backend)
    look = name == "reference"
    labels = _inputs.labels(target, x, num_classes, weight, sample_weight, ignore_index, look)
    arguments = options.activation, options.center
    if name == "reference":
        return reference.class_histogram(x, labels, *arguments)
    if torch.compiler.is_compiling():
        activation, center = arguments
        return torch.ops.discfused.class_histogram(x, *labels, activation, name, center)[0]
    return _autograd.ClassHistogram.apply(x, labels, backends.get(name), *arguments)


def _layers(
    features: Tensor | Sequence[Tensor],
    target: Tensor,
    num_classes: int,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    prior: str | Tensor,
    options: _inputs.Options,
    weights: tuple[float, float] | None,
    differentiable: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], Labels]:
    """penalty, gini and kl, each averaged over the layers; and the labels as checked."""
    layers = _inputs.layers(features)
    results = []
    for layer in layers:
        x = _inputs.features(layer if differentiable else layer.detach(), options.feature_dim)
        name = backends.resolve(x.device.type, options.backend)
        labels = _inputs.labels(
            target, x, num_classes, weight, sample_weight, options.ignore_index,
            look=name == "reference",
        )  # fmt: skip
        pi = _inputs.prior(prior, num_classes, accumulation_dtype(x.dtype), x.device)
        results.append(_terms(name, x, labels, pi, options, weights))
    if len(results) == 1:
        return results[0], labels
    return tuple(sum(values) / len(values) for values in zip(*results, strict=True)), labels


def _terms(
    name: str,
    x: Tensor,
    labels: Labels,
    prior: Tensor | None,
    options: _inputs.Options,
    weights: tuple[float, float] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """penalty, gini, kl, by the backend of that name; both weights are 1 if none are given"""
    settings = Settings(
        options.activation, options.center, options.kl_direction == "reverse", options.eps
    )
    gini_weight, kl_weight = weights or (1.0, 1.0)
    if name == "reference":
        gini, kl = reference.disc_terms(x, labels, prior, settings)
    elif torch.compiler.is_compiling():
        activation, *rest = settings
        gini, kl = torch.ops.discfused.disc_terms(x, *labels, activation, name, prior, *rest)[:2]
    else:
        return _autograd.DiscTerms.apply(
            x, labels, prior, settings, backends.get(name), gini_weight, kl_weight
        )
    return gini_weight * gini + kl_weight * kl, gini, kl
