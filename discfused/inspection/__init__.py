"""`discfused.report`: measures the features of a model on a data set, and shows them.

It needs the packages of the extra `inspect`; the import of this file does not.
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
    """P_cj of every feature j and class c over all the data, as numbers and pictures.

        discfused.report(model, loader)                        # in a notebook: the page
        discfused.report(model, loader).save("folder")         # page, PNG, CSV and JSON
        discfused.report(model, loader, compare=before)        # side by side with another report

    `discfused.metrics.Discriminability` has the formulas. The model runs once over the data, in
    eval mode and without gradients. Memory does not depend on the amount of data: C * D + C + 3
    numbers per layer, and pictures of the 6 images that excite each feature of the last layer most,
    at most 6 * D of 64 x 64 pixels. After Ctrl-C the report covers the batches so far and is marked
    as `partial`.

    Args:
        model: any classifier whose output is logits [N, C] or has them as `logits`.
        loader: batches (inputs, target), or dicts with "labels" or "label" and keyword arguments of
            the model. target: [N] class indices (-100: ignored) or [N, C] class probabilities.
        layers: as in FeatureTap. Default: the input of the classifier, before dropout. A list gives
            curves over the layers; all other figures show the last layer.
        name: name of this run in the report. Default: the class of the model.
        compare: other reports on the same classes, shown to the left of this one.
        class_names: C names. Default: `loader.dataset.classes`, `model.config.id2label`, or 0 to
            C - 1.
        num_classes: C, for models whose output has no logits.
        capture: as in FeatureTap.
        feature_dim: the dimension of a layer's output that counts features. Default: 1, and -1 if
            `layers` is None.
        activation, prior, backend: as in `disc_terms`.
        device: the device for batches. Default: the device of the model.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype or value; the input of the
            classifier is ambiguous (name `layers`); the loader is empty.
        KeyboardInterrupt: Ctrl-C before the end of the first batch.
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
