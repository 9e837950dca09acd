"""The loss and its two terms as functions: they check the arguments and call the operators.

Symbols: N samples, D features, C classes. The loss is that of arXiv 2202.07073, as its authors
implement it. "Ours" marks our additions.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from discfused import _batch, _cross_entropy, _inputs, _terms
from discfused._class_sums import ClassSums, whole_batch
from discfused._definitions import accumulation_dtype

if TYPE_CHECKING:  # some builds of PyTorch have no torch.distributed
    from torch.distributed import ProcessGroup

# The values of the paper's authors.
GINI_WEIGHT = 0.5
KL_WEIGHT = 0.5


class DiscTerms(NamedTuple):
    """Two scalars, float32 (float64 for float64 features)."""

    gini: Tensor  # the impurity term, in [0, 1]: 0 if every feature fires for one class only
    kl: Tensor  # >= 0, in nats: 0 if the features follow the distribution of the classes


class LossTerms(NamedTuple):
    """The parts of a loss, unweighted and detached, for logging. No host synchronization."""

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
    process_group: "ProcessGroup | str | None" = None,
    class_sums: ClassSums | None = None,
    check_labels: str = "async",
    backend: str | None = None,
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, LossTerms]:
    """loss = cross_entropy(logits, target) + gini_weight * gini + kl_weight * kl

    The first two arguments are those of `torch.nn.functional.cross_entropy`. `disc_terms` defines
    the two terms. If both weights are 0, the result is the cross-entropy, and features may be None.

    Args:
        logits: [N, C], any float dtype. Without features, any shape that cross_entropy accepts.
        target: [N] class indices of an integer dtype, or [N, C] class probabilities.
        features: [N, D] or [N, D, ...], any float dtype, any strides. Further dimensions are
            reduced by phi and then the mean. Or a list of such tensors, one per layer: the terms
            are averaged over the layers. The paper uses the input of the last linear layer, before
            dropout.
        gini_weight, kl_weight: finite, >= 0; 0.5 in the paper.
        weight: [C], class weights of cross-entropy. They do not affect the terms.
        ignore_index: rows with this label do not count.
        reduction: "mean"; "sum" (the sum of cross-entropy, plus the terms times the weighted number
            of rows that are not ignored); "none" ([N]: the terms are added to every element, so the
            mean equals the "mean" loss if no row is ignored or weighted).
        label_smoothing: in [0, 1]. It does not affect the terms.
        sample_weight: [N], >= 0 (ours). Multiplies the cross-entropy and the membership of a row;
            "mean" divides by the weighted count. Weight k equals k copies of the row.
        activation, impurity, prior, feature_dim, check_labels, backend: see `disc_terms`.
        process_group, class_sums: the rows are one part of a batch, see `disc_terms`. This includes
            cross-entropy: the mean over the parts of losses and gradients equals the loss and the
            gradient of the whole batch in one process, also for parts of different sizes. (With
            "none" the mean of each part has the same weight.)
        return_terms: also return LossTerms(ce, gini, kl), unweighted and detached.

    Returns:
        A float32 scalar (float64 for float64 input; [N] for "none"), also under autocast.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        IndexError: a label is out of range (on a GPU see check_labels).
        RuntimeError: the named backend cannot run here, or double backward of a fused backend.
    """
    gini_weight = _inputs.non_negative("gini_weight", gini_weight)
    kl_weight = _inputs.non_negative("kl_weight", kl_weight)
    _inputs.one_of("reduction", reduction, _inputs.REDUCTIONS)
    label_smoothing = _inputs.label_smoothing(label_smoothing)
    options = _inputs.options(
        ignore_index, activation, feature_dim, check_labels, backend, impurity, process_group
    )
    if features is None:
        if gini_weight or kl_weight:
            raise ValueError(
                "features is None, expected [N, D]: pass the features, attach the criterion to "
                "the model (FusedDiscLoss.attach), or set gini_weight = kl_weight = 0"
            )
        target = _batch.loss_arguments(logits, target, sample_weight, options.ignore_index)
        ce = _cross_entropy.cross_entropy(
            logits, target, weight, options.ignore_index, reduction, label_smoothing, sample_weight
        )
        if not return_terms:
            return ce
        absent = ce.new_zeros(())
        return ce, LossTerms(ce.detach().clone(), absent, absent)

    C = _batch.logits(logits)
    layers, target = _batch.checked(features, target, C, sample_weight, options)
    _inputs.same_device("logits", logits, target.device)
    _batch.same_length("logits", logits, target)
    if weight is not None:
        weight = _inputs.numbers("weight", weight, C, target.device)
    is_part = options.group is not None or class_sums is not None
    if is_part:
        own = _terms.class_sums(
            layers, target, C, weight, sample_weight, options, accumulation_dtype(logits.dtype)
        )
        put_together = whole_batch(own, class_sums, options.group)
    else:
        penalty, gini, kl = _terms.terms(
            layers, target, C, sample_weight, prior, options, gini_weight, kl_weight
        )
    if target.device.type != "cpu" and not target.dtype.is_floating_point:
        target = _cross_entropy.in_range(target, C, options.ignore_index)
    ce = _cross_entropy.cross_entropy(
        logits, target, weight, options.ignore_index,
        "sum" if is_part and reduction == "mean" else reduction, label_smoothing, sample_weight,
    )  # fmt: skip
    if is_part:
        whole = put_together()
        penalty, gini, kl = _terms.terms_of_sums(whole, prior, options, gini_weight, kl_weight)
        rows, divisor, parts = whole.counts
        if reduction != "none":
            ce = ce * (parts / divisor if reduction == "mean" else parts)
    if ce.dtype != penalty.dtype:
        ce = ce.to(torch.promote_types(ce.dtype, penalty.dtype))
    loss = ce
    if gini_weight or kl_weight:  # 0 * NaN would not be 0
        if reduction == "sum":
            if not is_part:
                rows = _cross_entropy.counted(
                    target, None, options.ignore_index, sample_weight, penalty.dtype
                )
            penalty = penalty * rows
        loss = ce + penalty
    if not return_terms:
        return loss
    # `loss /= 2` must not change the terms.
    logged = ce.detach().clone() if loss is ce else ce.detach()
    return loss, LossTerms(logged, gini.detach(), kl.detach())


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
    process_group: "ProcessGroup | str | None" = None,
    class_sums: ClassSums | None = None,
    check_labels: str = "async",
    backend: str | None = None,
) -> DiscTerms:
    """gini = 1 - (1/D) sum_j sum_c P_cj^2,   kl = sum_c pi_c log(pi_c / max(q_c, 1e-10))

    P_cj = H_cj / sum_k H_kj is the probability of class c given that feature j fires, H is the
    result of `class_histogram`, and q_c is the mean of P_cj over the live features. A feature that
    is 0 in all rows is dead: it counts as 1 in gini and does not count in q. Both terms are 0 if no
    row counts. Differentiable in the features. For use with another base loss (focal, ArcFace ...).

    Args:
        features: [N, D] or [N, D, ...], any float dtype, any strides. Further dimensions are
            reduced by phi and then the mean. Or a list of such tensors: the terms are averaged over
            them.
        target: [N] class indices of an integer dtype, or [N, C] class probabilities (ours).
        num_classes: C. It is not read from the target, because that would stall a GPU.
        ignore_index: rows with this label do not count.
        sample_weight: [N], >= 0, constants (ours). Weight k equals k copies of the row.
        activation: phi, how strongly a feature fires: "abs" (the paper's) or "relu".
        impurity: "gini" (the paper's) or "collision" (ours), the normalised Renyi entropy of order
            2: (1/D) sum_j -log(sum_c P_cj^2) / log K, with K the number of classes in the batch. It
            is 0 if K < 2, else 1 for a dead feature. With many classes the gradient of Gini almost
            vanishes; the gradient of collision does not.
        prior: pi, the distribution of the classes: "batch" (the paper's), "uniform", or a tensor
            [C] of numbers >= 0 (divided by its sum). A class with pi_c > 0 that is absent from the
            batch adds pi_c log(pi_c / 1e-10), about 20 pi_c, to kl, and no gradient.
        feature_dim: the dimension of `features` that counts features; -1 for tokens [N, T, D].
        process_group: "world" or a torch.distributed.ProcessGroup (ours). The terms are computed
            for the batches of all its processes together, and are equal on all of them. Forward
            makes one all_reduce of C * D numbers per layer, for any N; backward makes none. The
            gradient is the gradient of the process's own rows times the number of processes, so the
            mean that DistributedDataParallel or FSDP takes is the gradient of the whole batch, also
            for batches of different sizes and empty ones. Every process must make the call. Under
            torch.no_grad the terms are those of the process's own batch, without a collective.
        class_sums: the sums of the whole batch, if these rows are one of its micro-batches (ours);
            see `class_sums`. The gradient is that of these rows times the number of parts.
        check_labels: when a label out of range on a GPU raises an IndexError. Such rows never
            count. "async": without a wait, possibly some calls late; "sync": in this call; "off":
            never. On a CPU always in this call.
        backend: "reference", "cpu", "triton", "cuda"; None for the fastest that can run here.

    Returns:
        DiscTerms(gini, kl), float32 scalars (float64 for float64 features). `gini` is the chosen
        impurity term.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype, device or value.
        IndexError: a label is out of range (on a GPU see check_labels).
        RuntimeError: the named backend cannot run here, or double backward of a fused backend.
    """
    options = _inputs.options(
        ignore_index, activation, feature_dim, check_labels, backend, impurity, process_group
    )
    C = _inputs.positive("num_classes", num_classes)
    layers, target = _batch.checked(features, target, C, sample_weight, options)
    if class_sums is None and options.group is None:
        terms = _terms.terms(layers, target, C, sample_weight, prior, options, 1.0, 1.0)
    else:
        own = _terms.class_sums(layers, target, C, None, sample_weight, options, torch.float32)
        whole = whole_batch(own, class_sums, options.group)()
        terms = _terms.terms_of_sums(whole, prior, options, 1.0, 1.0)
    return DiscTerms(*terms[1:])
