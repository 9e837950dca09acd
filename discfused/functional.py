"""The public functions: check every argument, choose a backend, call its operators.

Every function states its formula; the symbols are N samples, D features, C classes. The loss is
that of arXiv 2202.07073 as its authors compute it; what is ours is said where it stands.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from discfused import _cross_entropy, _inputs, _ops, backends, reference
from discfused._definitions import ACTIVATIONS, IMPURITIES, accumulation_dtype

# The paper's, as its authors set them.
GINI_WEIGHT = 0.5
KL_WEIGHT = 0.5


class DiscTerms(NamedTuple):
    """Both scalars, float32 (float64 for float64 features)."""

    gini: Tensor  # the impurity term, in [0, 1]: 0 when every feature fires for one class only
    kl: Tensor  # >= 0, in nats: 0 when the features fire for the classes as often as these occur


class LossTerms(NamedTuple):
    """The parts of a loss, unweighted and detached: for logging, without a host sync."""

    ce: Tensor
    gini: Tensor  # the impurity term
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
    activation: str = "abs",
    impurity: str = "gini",
    prior: str | Tensor = "batch",
    feature_dim: int = 1,
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
        features: [N, D] or [N, D, ...] (phi, then the mean over the rest), any float dtype, any
            strides; or a list of such tensors, one for each layer: the terms are averaged over
            them. The paper takes what feeds the last linear layer, before any dropout.
        gini_weight, kl_weight: finite, >= 0; 0.5 in the paper.
        weight: [C], of the classes, in cross-entropy alone.
        ignore_index: rows with this label do not count anywhere.
        reduction: "mean"; "sum" (summed cross-entropy, and the terms times the number of rows that
            are not ignored, each counted sample_weight times); "none" ([N]: the terms are added to
            every element, so that the mean is the "mean" loss if nothing is ignored or weighted).
        label_smoothing: in [0, 1], of cross-entropy alone.
        sample_weight: [N], >= 0 (ours). Multiplies a row's cross-entropy and its membership;
            "mean" divides by the weighted count: a weight of k is the row repeated k times.
        activation, impurity, prior, feature_dim, process_group, backend: see `disc_terms`.
        return_terms: also return LossTerms(ce, gini, kl), unweighted and detached.

    Returns:
        A float32 scalar (float64 for float64 input; [N] for "none"), also under autocast.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        IndexError: a label is out of range (CPU tensors).
        RuntimeError: the named backend cannot run here; or a fused backend is differentiated twice.
    """
    gini_weight = _inputs.non_negative("gini_weight", gini_weight)
    kl_weight = _inputs.non_negative("kl_weight", kl_weight)
    _inputs.one_of("reduction", reduction, _inputs.REDUCTIONS)
    label_smoothing = _inputs.label_smoothing(label_smoothing)
    options = _inputs.options(
        ignore_index, activation, impurity, feature_dim, process_group, backend
    )
    if features is None:
        ce = _without_features(
            logits, target, weight, options.ignore_index, reduction, label_smoothing,
            sample_weight, gini_weight > 0 or kl_weight > 0,
        )  # fmt: skip
        absent = ce.new_zeros(())
        return (ce, LossTerms(ce.detach(), absent, absent)) if return_terms else ce

    C = _inputs.logits(logits)
    layers, target = _checked(features, target, C, sample_weight, options)
    _inputs.same_device("logits", logits, target.device)
    _inputs.same_length("logits", logits, target)
    if weight is not None:
        weight = _inputs.numbers("weight", weight, C, target.device)
    penalty, gini, kl = _terms(
        layers, target, C, sample_weight, prior, options, gini_weight, kl_weight
    )
    if target.device.type != "cpu" and not target.dtype.is_floating_point:
        target = _cross_entropy.in_range(target, C, options.ignore_index)
    ce = _cross_entropy.cross_entropy(
        logits, target, weight, options.ignore_index, reduction, label_smoothing, sample_weight
    )
    if ce.dtype != penalty.dtype:
        ce = ce.to(torch.promote_types(ce.dtype, penalty.dtype))
    loss = ce
    if gini_weight or kl_weight:  # 0 * NaN would not be 0
        if reduction == "sum":
            penalty = penalty * _cross_entropy.count(
                target, sample_weight, options.ignore_index, penalty.dtype
            )
        loss = ce + penalty
    if not return_terms:
        return loss
    return loss, LossTerms(ce.detach(), gini.detach(), kl.detach())


def disc_terms(
    features: Tensor | Sequence[Tensor],
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    activation: str = "abs",
    impurity: str = "gini",
    prior: str | Tensor = "batch",
    feature_dim: int = 1,
    process_group=None,
    backend: str | None = None,
) -> DiscTerms:
    """gini = 1 - (1/D) sum_j sum_c P_cj^2,   kl = sum_c pi_c log(pi_c / max(q_c, 1e-10))

    where P_cj = H_cj / sum_k H_kj is the probability of class c given that feature j fires, H the
    histogram of `class_histogram`, and q_c the mean of P_cj over the live features. A feature that
    is 0 everywhere is dead: it counts as 1 in gini and not in q. Both terms are 0 where no row
    counts. Differentiable in the features. Use them beside another base loss (focal, ArcFace ...).

    Args:
        features: [N, D] or [N, D, ...] (phi, then the mean over the rest), any float dtype, any
            strides; or a list of such tensors, over which the terms are averaged.
        target: [N] class indices of an integer dtype, or [N, C] class probabilities (ours).
        num_classes: C. Never taken from target.max(), which would stall a GPU.
        ignore_index: rows with this label do not count.
        sample_weight: [N], >= 0, constants (ours): a weight of k is the row repeated k times.
        activation: phi, how much a feature fires: "abs" (the paper's) or "relu".
        impurity: "gini" (the paper's) or "collision" (ours), the normalised Renyi entropy of order
            2, (1/D) sum_j -log(sum_c P_cj^2) / log K with K the number of classes in the batch: 0
            where K < 2, 1 for a dead feature. Where classes are many, Gini's gradient all but
            vanishes, and that of collision does not.
        prior: pi, the distribution of the classes: of the "batch" (the paper's), "uniform", or a
            tensor [C] of numbers >= 0 (divided by its sum).
        feature_dim: the dimension of `features` that counts features; -1 for tokens [N, T, D].
        process_group: not supported yet.
        backend: "reference", "cpu", "triton", "cuda"; None for the fastest that can run here.

    Returns:
        DiscTerms(gini, kl), float32 scalars (float64 for float64 features). `gini` is the impurity
        term, whichever impurity was chosen.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        IndexError: a label is out of range (CPU tensors).
        RuntimeError: the named backend cannot run here; or a fused backend is differentiated twice.
    """
    options = _inputs.options(
        ignore_index, activation, impurity, feature_dim, process_group, backend
    )
    C = _inputs.integer("num_classes", num_classes)
    layers, target = _checked(features, target, C, sample_weight, options)
    return DiscTerms(*_terms(layers, target, C, sample_weight, prior, options, 1.0, 1.0)[1:])


def class_histogram(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    activation: str = "abs",
    feature_dim: int = 1,
    backend: str | None = None,
) -> Tensor:
    """H_cj = sum_i m_ic phi(x_ij) / n_c,   n_c = sum_i m_ic

    The mean activation of feature j over the samples of class c, 0 for an absent class. m_ic =
    sample_weight_i * 1[target_i = c] for class indices and sample_weight_i * target_ic for class
    probabilities, 0 for ignored rows; phi is the activation. Differentiable in the features.

    Args: as in `disc_terms`, for one features tensor.

    Returns:
        [C, D], float32 (float64 for float64 features).

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: as in `disc_terms`.
    """
    options = _inputs.options(ignore_index, activation, "gini", feature_dim, None, backend)
    C = _inputs.integer("num_classes", num_classes)
    if isinstance(features, (list, tuple)):
        raise TypeError(f"features is a {type(features).__name__}, expected a torch.Tensor")
    (x,), target = _checked(features, target, C, sample_weight, options)
    name = _backend(x.device.type, options.backend)
    rows = _rows(name, target, sample_weight, C, options, accumulation_dtype(x.dtype))
    if name == "reference":
        return reference.class_histogram(x, rows, options.activation)
    return _ops.named(name).histogram(x, rows, C, ACTIVATIONS.index(options.activation))


def _without_features(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    sample_weight: Tensor | None,
    penalised: bool,
) -> Tensor:
    """Cross-entropy alone, of any shape that F.cross_entropy takes; it checks the rest itself."""
    if penalised:
        raise ValueError(
            "features is None, expected [N, D]: pass the features, attach the criterion to the "
            "model (FusedDiscLoss.attach), or set gini_weight = kl_weight = 0"
        )
    target = _inputs.loss_arguments(logits, target, sample_weight, ignore_index)
    return _cross_entropy.cross_entropy(
        logits, target, weight, ignore_index, reduction, label_smoothing, sample_weight
    )


def _checked(
    features: object, target: object, C: int, sample_weight: object, options: _inputs.Options
) -> tuple[list[Tensor], Tensor]:
    """Every layer as [N, D], and the target."""
    layers = _inputs.layers(features, options.feature_dim, options.activation)
    device = layers[0].device
    target = _inputs.target(target, C, options.ignore_index, device)
    for x in layers:
        _inputs.same_device("features", x, device)
        _inputs.same_length("features", x, target)
    if sample_weight is not None:
        _inputs.weights("sample_weight", sample_weight, target.shape[0], device)
    return layers, target


def _terms(
    layers: list[Tensor],
    target: Tensor,
    C: int,
    sample_weight: Tensor | None,
    prior: str | Tensor,
    options: _inputs.Options,
    gini_weight: float,
    kl_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """gini_weight * gini + kl_weight * kl, gini, kl: each averaged over the layers."""
    name = _backend(target.device.type, options.backend)
    prepared, results = {}, []
    for x in layers:
        dtype = accumulation_dtype(x.dtype)
        if dtype not in prepared:  # once for all layers, but for those of another precision
            pi = _inputs.prior(prior, C, dtype, target.device)
            prepared[dtype] = _rows(name, target, sample_weight, C, options, dtype), pi
        rows, pi = prepared[dtype]
        if name == "reference":
            gini, kl = reference.disc_terms(x, rows, pi, options.activation, options.impurity)
            results.append((gini_weight * gini + kl_weight * kl, gini, kl))
        else:
            # A weight inside the operator would be a constant of torch.compile's graph.
            compiling = torch.compiler.is_compiling()
            penalty, gini, kl, _ = _ops.named(name).terms(
                x, rows, C, pi, ACTIVATIONS.index(options.activation),
                IMPURITIES.index(options.impurity),
                *((1.0, 1.0) if compiling else (gini_weight, kl_weight)),
            )  # fmt: skip
            if compiling:
                penalty = gini_weight * gini + kl_weight * kl
            results.append((penalty, gini, kl))
    if len(results) == 1:
        return results[0]
    return tuple(sum(values) / len(values) for values in zip(*results, strict=True))


def _rows(
    name: str,
    target: Tensor,
    sample_weight: Tensor | None,
    C: int,
    options: _inputs.Options,
    dtype: torch.dtype,
) -> Tensor | list[Tensor]:
    """Which rows belong to which class, in the form that the backend uses."""
    if target.requires_grad:
        target = target.detach()
    arguments = target, sample_weight, C, options.ignore_index, dtype
    if name != "reference":
        return _ops.named(name).rows(*arguments)
    _inputs.check_labels(target, C, options.ignore_index)
    return reference.membership(*arguments)


def _backend(device_type: str, requested: str | None) -> str:
    """The backend's name. Under torch.func's transforms and in forward mode it is the reference: of
    the others, whose kernels read memory, these see no formula."""
    if not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() or forward_ad._current_level >= 0
    ):
        if requested in (None, "reference"):
            return "reference"
        raise RuntimeError(
            f"backend is {requested!r}, which neither torch.func nor forward-mode differentiation "
            'can see through: use backend="reference", or leave backend=None'
        )
    return backends.resolve(device_type, requested)
