"""One pass of a model over the data, for the numbers of every layer and the images to show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from discfused import _batch, _inputs
from discfused._definitions import activate
from discfused._interrupt import Watch
from discfused.inspection.exciting import MostExciting
from discfused.metrics import Discriminability, FeatureDiscriminability
from discfused.tap import FeatureTap
from discfused.tap.names import unwrap

LONG = 2  # seconds until a progress bar appears
LABELS = "labels", "label"


class Run(NamedTuple):
    """A model on a data set."""

    name: str
    layers: dict[str, Discriminability]  # in the given order, on the CPU
    class_names: list[str]
    samples: int  # number of samples that count
    partial: bool  # stopped before the last batch
    exciting: MostExciting  # for the last layer

    @property
    def last(self) -> Discriminability:
        return [*self.layers.values()][-1]


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    layers: Any,
    *,
    name: str | None,
    class_names: Sequence[str] | None,
    num_classes: int | None,
    capture: str,
    feature_dim: int | None,
    device: torch.device | str | None,
    activation: str,
    **options: Any,
) -> Run:
    """The last run of `discfused.report`, which has the same arguments."""
    if feature_dim is None:
        feature_dim = -1 if layers is None else 1
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # Other processes may not call this function, so there is no collective.
    options |= {"activation": activation, "sync_on_compute": False}
    metrics: list[FeatureDiscriminability] = []
    exciting: Any = None
    seen, partial = 0, False
    modes = {module: module.training for module in model.modules()}
    bar = tqdm(loader, desc=name or "features", delay=LONG, leave=False)
    try:
        model.eval()
        with torch.no_grad(), FeatureTap(model, layers, capture=capture) as tap, bar:
            for batch in bar:
                with Watch(alone=True) as watch:  # no interruption during an update
                    inputs, target = on_device(inputs_and_target(batch), device)
                    output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
                    pooled = _batch.layers(tap.take(output), feature_dim, activation)
                    if not metrics:
                        C = _inputs.positive("num_classes", num_classes or classes_of(output))
                        metrics = [FeatureDiscriminability(C, x.shape[1], **options).to(x.device)
                                   for x in pooled]  # fmt: skip
                        exciting = MostExciting(pooled[-1].shape[1])
                        class_names = _names(class_names, C, model, loader)
                    for metric, x in zip(metrics, pooled, strict=True):
                        metric.update(x, target)
                    x = activate(pooled[-1].float(), activation)
                    exciting.update(x, target, images_of(inputs), seen)
                    seen += len(target)
                if watch.asked:
                    raise KeyboardInterrupt
            names = tap.names
    except KeyboardInterrupt:
        if not metrics:
            raise
        names, partial = tap.names, True
    finally:
        for module, training in modes.items():
            module.training = training
    if not metrics:
        raise ValueError("loader has no batch, expected at least one")
    return Run(
        name or type(unwrap(model)).__name__,
        {layer: metric.compute().cpu() for layer, metric in zip(names, metrics, strict=True)},
        list(class_names or ()),
        int(metrics[0].counts[0]),
        partial,
        exciting,
    )


def inputs_and_target(batch: Any) -> tuple[Any, Tensor]:
    """The inputs and the target of a batch."""
    if isinstance(batch, Mapping):
        label = next((label for label in LABELS if label in batch), None)
        if label is None:
            raise ValueError(
                f"a batch of the loader has {', '.join(map(repr, batch))}, expected 'labels' or "
                "'label', and the arguments of the model"
            )
        return {key: value for key, value in batch.items() if key != label}, batch[label]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise TypeError(
        f"a batch of the loader is a {type(batch).__name__}, expected (inputs, target) or a dict"
    )


def on_device(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Mapping):
        return {key: on_device(each, device) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [on_device(each, device) for each in value]
    return value.to(device) if isinstance(value, Tensor) else value


def images_of(inputs: Any) -> Tensor | None:
    """The inputs of shape [N, 1 or 3, h, w], if there are any."""
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return next(
        (x for x in values if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] in (1, 3)), None
    )


def classes_of(output: Any) -> int:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError(
            "num_classes is None, and the output of the model has no logits [N, C]: pass "
            "num_classes"
        )
    return logits.shape[1]


def _names(
    given: Sequence[str] | None, C: int, model: nn.Module, loader: Iterable[Any]
) -> list[str]:
    if given is not None:
        if len(given) != C:
            raise ValueError(f"class_names has {len(given)} names, expected {C}")
        return [str(name) for name in given]
    classes = getattr(getattr(loader, "dataset", None), "classes", None)
    if isinstance(classes, Sequence) and len(classes) == C:
        return [str(name) for name in classes]
    by_index = getattr(getattr(model, "config", None), "id2label", None) or {}
    return [str(by_index.get(c, c)) for c in range(C)]
