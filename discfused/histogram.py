"""The class histogram of one batch, and its class sums."""

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

    H_cj is the mean activation of feature j over the samples of class c, 0 for an absent class.
    m_ic is sample_weight_i * 1[target_i = c] for class indices, sample_weight_i * target_ic for
    class probabilities, and 0 for ignored rows. phi is the activation. Differentiable in the
    features.

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

    The class histogram before the division. The sums of micro-batches add up to the sums of the
    whole batch, which determine its terms (ours). A first pass collects them and a second pass
    trains. The mean over the parts of losses and gradients then equals that of the whole batch:

        with torch.no_grad():
            whole = sum(class_sums(net(x), y, num_classes) for x, y in parts)
        for x, y in parts:
            features = net(x)
            loss = fused_disc_loss(classifier(features), y, features, class_sums=whole)
            (loss / len(parts)).backward()

    This is exact if both passes compute the same features. If the network has dropout, run the
    first pass in `torch.random.fork_rng()`.

    Args:
        weight: [C], class weights of cross-entropy, which divides by their sum over the whole
            batch.
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
