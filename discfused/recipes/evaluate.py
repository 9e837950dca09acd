"""Test accuracy of a network, and the terms of its features."""

from discfused.recipes import _torchvision  # noqa: F401  # before others import torchvision

# isort: split
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from discfused import FeatureTap, _batch, class_histogram, disc_terms
from discfused.recipes.options import Loss


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    loss: Loss,
    device: torch.device,
) -> dict[str, float]:
    """Accuracies in percent, cross-entropy, and the terms of all test features as one batch."""
    was_training = model.training
    model.eval()
    logits, targets, features = [], [], []
    with torch.no_grad(), FeatureTap(model, loss.layers, capture=loss.capture) as tap:
        for images, target in batches:
            output = model(images.to(device))
            logits.append(output.float())
            targets.append(target.to(device))
            features.append(pooled(tap.take(output), loss))
    model.train(was_training)

    outputs, target = torch.cat(logits), torch.cat(targets)
    layers = [torch.cat(parts) for parts in zip(*features, strict=True)]
    # Gini whatever impurity the run trains with, so that runs can be compared.
    options = term_options(loss) | {"impurity": "gini"}
    gini, kl = disc_terms(layers, target, num_classes, **options)

    # By hand, because average="macro" counts a class that was only predicted as 0.
    of_class = multiclass_accuracy(outputs, target, num_classes, "none")[target.unique()].mean()
    accuracy = multiclass_accuracy(outputs, target, num_classes, "micro")

    return {
        "accuracy": round(100 * accuracy.item(), 4),  # it is float32
        "class_accuracy": round(100 * of_class.item(), 4),
        "ce": F.cross_entropy(outputs, target).item(),
        "gini": gini.item(),
        "kl": kl.item(),
        "live": live_share(layers, target, num_classes, loss).item(),
    }


def term_options(loss: Loss) -> dict[str, Any]:
    """The options of `disc_terms` except feature_dim."""
    names = ("activation", "impurity", "prior", "backend")
    return {name: getattr(loss, name) for name in names}


def pooled(features: Tensor | list[Tensor], loss: Loss) -> list[Tensor]:
    """The features [N, D] of each tapped layer."""
    layers = _batch.layers(features, loss.feature_dim, loss.activation)
    return [x.detach().float() for x in layers]


def live_share(layers: list[Tensor], target: Tensor, num_classes: int, loss: Loss) -> Tensor:
    """The fraction of the features [N, D] that fire for at least one row."""
    options: dict[str, Any] = {"activation": loss.activation, "backend": loss.backend}
    shares = [
        (class_histogram(x, target, num_classes, **options).sum(0) > 0).float().mean()
        for x in layers
    ]
    return torch.stack(shares).mean()
