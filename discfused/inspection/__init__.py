"""See what the features learned: measure a model on a data set, and look at it.

Needs the packages of the extra `inspect`, but for the import of this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from discfused._extras import needed_by

if TYPE_CHECKING:
    from discfused.inspection.page import Report


def report(
    model: nn.Module,
    loader: Iterable[Any],
    layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
    *,
    name: str | None = None,
    compare: Report | Sequence[Report] = (),
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    capture: str = "output",
    feature_dim: int | None = None,
    activation: str = "abs",
    prior: str | Tensor = "batch",
    backend: str | None = None,
    device: torch.device | str | None = None,
) -> Report:
    """For which class does every feature fire, over all the data: numbers and pictures.

        discfused.report(model, loader)                        # in a notebook: the page
        discfused.report(model, loader).save("folder")         # page, PNG, CSV and JSON
        discfused.report(model, loader, compare=before)        # side by side with another report

    Every number is one of `discfused.metrics.Discriminability`. The model runs once over the data,
    in eval mode and without gradients. Memory does not grow with the data: C * D + C + 3 numbers
    for each layer, and small pictures of the 6 images that excite each feature of the last layer
    most, at most 6 * D of 64 x 64 pixels. Ctrl-C ends it with what has been seen so far; the report
    then is `partial`, and says so.

    Args:
        model: any classifier: it gives out logits [N, C], or what has them as `logits`.
        loader: of (inputs, target), or of dicts with "labels" or "label" beside what the model
            takes as keywords. target: [N] class indices (-100: ignored) or [N, C] probabilities.
        layers: as in FeatureTap. Default: what feeds the classifier, before dropout. Several in
            order give curves over the layers; all other figures are of the last.
        name: of this run in the report. Default: the class of the model.
        compare: other reports on the same classes, which stand to the left of this one.
        class_names: C names. Default: `loader.dataset.classes`, `model.config.id2label`, or 0 to
            C - 1.
        num_classes: C, for models that give out no logits.
        capture: as in FeatureTap.
        feature_dim: the dimension of what layers give that counts features. Default: 1, and the
            last one where `layers` is None.
        activation, prior, backend: as in `disc_terms`.
        device: where batches go. Default: where the model is.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype or value; the classifier cannot
            be told (then name `layers`); the loader is empty.
        KeyboardInterrupt: Ctrl-C before the first batch was seen.
        ImportError: packages of the extra are missing.
    """
    with needed_by("discfused.report"):
        from discfused.inspection import measure, page

    others = [compare] if isinstance(compare, page.Report) else list(compare)
    run = measure.measure(
        model, loader, layers, name=name, class_names=class_names, num_classes=num_classes,
        capture=capture, feature_dim=feature_dim, activation=activation, prior=prior,
        backend=backend, device=device,
    )  # fmt: skip
    return page.Report([*(other for report in others for other in report.runs), run])
