"""A Lightning callback that logs how discriminative the features are during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from discfused import _batch, _inputs
from discfused._discriminability import Discriminability
from discfused._extras import needed_by
from discfused.tap import FeatureTap
from discfused.tap.hooks import Handles
from discfused.tap.names import find

with needed_by("discfused.lightning", "recipes"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    from discfused.inspection import figures
    from discfused.inspection.measure import classes_of, inputs_and_target
    from discfused.metrics import FeatureDiscriminability

__all__ = ["LogDiscriminability"]


class LogDiscriminability(Callback):
    """Logs `Discriminability.summary` of the features after every validation, as PREFIX/mean_gini
    etc., and after every k-th epoch the heat map of the class histogram to TensorBoard.

        Trainer(callbacks=[LogDiscriminability(every=5)])

    It uses the features that `validation_step` computes, without further forward passes, from all
    validation loaders and processes. It keeps C * D + C + 3 numbers.

    Args:
        layers: one layer, as in FeatureTap. Default: the input of the classifier.
        every: number of epochs from one heat map to the next; 0 for none.
        model: name of the network in the LightningModule; "" for the LightningModule itself, called
            as self(x). Default: its only child with parameters, else the LightningModule.
        num_classes: C, for networks whose output has no logits.
        class_names: C names.
        prefix: prefix of the logged names.
        capture, feature_dim, activation, prior, backend: as in `discfused.report`.

    Raises:
        ValueError, TypeError: as `discfused.report`; a batch is neither (inputs, target) nor a dict
            with labels; validation_step did not run the network.
        ImportError: Lightning, matplotlib or torchmetrics is missing.
    """

    def __init__(
        self,
        layers: str | nn.Module | None = None,
        *,
        every: int = 1,
        model: str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        prefix: str = "discriminability",
        capture: str = "output",
        feature_dim: int | None = None,
        activation: str = "abs",
        prior: str | Tensor = "batch",
        backend: str | None = None,
    ):
        if (every := _inputs.integer("every", every)) < 0:
            raise ValueError(f"every is {every}, expected a number of epochs, or 0 for no heat map")
        if isinstance(layers, (list, tuple)):
            raise TypeError(
                f"layers is a {type(layers).__name__}, expected one layer: add a callback for "
                "each, with its own prefix"
            )
        self.layers, self.every, self.model, self.prefix = layers, every, model, prefix
        self.num_classes, self.class_names = num_classes, class_names
        self.capture, self.activation = capture, activation
        if feature_dim is None:
            feature_dim = -1 if layers is None else 1
        self.feature_dim = feature_dim
        self.options: dict[str, Any] = {
            "activation": activation,
            "prior": prior,
            "backend": backend,
        }
        self._metric: FeatureDiscriminability | None = None
        self._handles = Handles()
        self._tap: Any = None  # a FeatureTap during an evaluation
        self._output: Any = None

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        network = self._network(module)
        self._tap = FeatureTap(network, self.layers, capture=self.capture)
        self._handles.add(network, "forward_hook", self._after_forward)
        if self._metric is not None:
            self._metric.reset()

    def _after_forward(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._output = output

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        if self._output is None:
            raise ValueError(
                "model did not run as a module in validation_step: name the network in the "
                "LightningModule, as in LogDiscriminability(model='net')"
            )
        _, target = inputs_and_target(batch)
        (x,) = _batch.layers(self._tap.take(self._output), self.feature_dim, self.activation)
        if self._metric is None:
            C = self.num_classes or classes_of(self._output)
            self._metric = FeatureDiscriminability(C, x.shape[1], **self.options).to(x.device)
        self._metric.update(x, target)
        self._output = None

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._remove()
        if trainer.world_size > 1:
            self._take_part(module)
        if self._metric is None:
            return
        values = self._metric.compute()  # equal in all processes, because it is synchronized
        if trainer.sanity_checking:
            return
        summary = {f"{self.prefix}/{name}": value for name, value in values.summary().items()}
        module.log_dict(summary, sync_dist=True)  # the mean of equal numbers; avoids a warning
        if self.every and trainer.current_epoch % self.every == 0 and trainer.is_global_zero:
            self._draw(trainer, values.cpu())

    def _take_part(self, module: LightningModule) -> None:
        """A process without a batch adds zeros: the others would wait for it in `compute`."""
        metric = self._metric
        own = (0, 0) if metric is None else (metric.num_classes, metric.num_features)
        of_all: Any = module.all_gather(torch.tensor(own, device=module.device))
        C, D = of_all.amax(0).tolist()
        if metric is None and C:
            self._metric = FeatureDiscriminability(C, D, **self.options).to(module.device)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        self._handles.remove()
        if self._tap is not None:
            self._tap.remove()
        self._tap = self._output = None

    def _draw(self, trainer: Trainer, values: Discriminability) -> None:
        names = self.class_names or range(len(values.samples_per_class))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                with figures.appearance("light"):
                    figure = figures.heat_maps({f"epoch {trainer.current_epoch}": values}, names)
                    logger.experiment.add_figure(
                        f"{self.prefix}/class_histogram", figure, trainer.global_step
                    )

    def _network(self, module: LightningModule) -> nn.Module:
        if self.model is not None:
            return find(module, [self.model])[0][1] if self.model else module
        children = [child for child in module.children() if any(True for _ in child.parameters())]
        return children[0] if len(children) == 1 else module
