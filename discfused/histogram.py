"""The class histogram of one batch, and the class sums that it is made of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from discfused import _batch, _inputs, _terms
from discfused._class_sums import ClassSums


def class_histogram(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    activation: str = "abs",
    feature_dim: int = 1,
    check_labels: str = "async",
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
    options = _inputs.options(ignore_index, activation, feature_dim, check_labels, backend)
    C = _inputs.positive("num_classes", num_classes)
    (x,), target = _batch.checked_layer(features, target, C, sample_weight, options)
    return _terms.class_histogram(x, target, C, sample_weight, options)


def class_sums(
    features: Tensor | Sequence[Tensor],
    target: Tensor,
    num_classes: int,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    activation: str = "abs",
    feature_dim: int = 1,
    check_labels: str = "async",
    backend: str | None = None,
) -> ClassSums:
    """sum_i m_ic phi(x_ij) of each layer, and n_c = sum_i m_ic

    The class histogram before its division. These sums add up, so they give a batch that is cut
    into micro-batches the terms of the whole (ours). A first pass collects them, a second one
    trains, and the mean over the parts of the losses and gradients is that of the whole batch:

        with torch.no_grad():
            whole = sum(class_sums(net(x), y, num_classes) for x, y in parts)
        for x, y in parts:
            features = net(x)
            loss = fused_disc_loss(classifier(features), y, features, class_sums=whole)
            (loss / len(parts)).backward()

    Exact where both passes compute the same features. So run the first one in
    `torch.random.fork_rng()` where the network has dropout.

    Args:
        weight: [C], of the classes in cross-entropy, which divides by the sum of the whole batch.
        The others: as in `disc_terms`.

    Raises:
        ValueError, TypeError, IndexError, RuntimeError: as in `disc_terms`.
    """
    options = _inputs.options(ignore_index, activation, feature_dim, check_labels, backend)
    C = _inputs.positive("num_classes", num_classes)
    layers, target = _batch.checked(features, target, C, sample_weight, options)
    if weight is not None:
        weight = _inputs.numbers("weight", weight, C, target.device)
    sums = _terms.class_sums(layers, target, C, weight, sample_weight, options, torch.float32)
    return sums.detach()
