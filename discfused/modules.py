"""FusedDiscLoss: the criterion as a module."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from discfused import _inputs
from discfused._class_sums import ClassSums
from discfused._modes import in_transform
from discfused.functional import GINI_WEIGHT, KL_WEIGHT, LossTerms, fused_disc_loss
from discfused.histogram import class_sums
from discfused.tap import FeatureTap

if TYPE_CHECKING:  # some builds of PyTorch have no torch.distributed
    from torch.distributed import ProcessGroup

_OPTIONS = (
    "gini_weight", "kl_weight", "ignore_index", "reduction", "label_smoothing", "activation",
    "impurity", "feature_dim", "check_labels", "backend",
)  # fmt: skip


class FusedDiscLoss(nn.Module):
    """loss = cross_entropy(logits, target) + gini_weight * gini + kl_weight * kl

    A drop-in for `nn.CrossEntropyLoss`:

        criterion = FusedDiscLoss()
        loss = criterion(logits, target, features)

        criterion = FusedDiscLoss.attach(model)   # taps the input of the classifier
        loss = criterion(model(images), target)

    The logits may be an output object of transformers or torchvision: the criterion uses its
    `logits` (add the cross-entropy of auxiliary logits yourself). An attached criterion uses the
    features of the forward pass that computed these logits, and raises an error if it has none.

    Args: the keywords of `fused_disc_loss`, which the constructor checks (backend: the first call).
    sample_weight and class_sums belong to a batch and are arguments of the call. All others are
    attributes and can be set at any time (a tensor as prior only to another tensor).

    The criterion has no parameters and adds nothing to a state_dict. Class weights and a prior
    tensor move with `.to(device)`.

    With several processes each process computes the loss of its own batch, unless process_group is
    given ("world": all processes; it can be pickled). Then gini and kl are those of the whole
    batch, and cross-entropy is scaled so that the mean over the processes of losses and gradients
    equals that of the whole batch. After `criterion.eval()` or under torch.no_grad each process
    computes the loss of its own batch, without the others.

    With gradient accumulation the terms are those of each micro-batch, unless `class_sums` gives
    the sums of the whole batch.

    Attributes:
        terms: LossTerms(ce, gini, kl) of the last call, detached, for logging. None before the
            first call and after one in a transform of torch.func. `gini` is the chosen impurity.
        tap: the FeatureTap of an attached criterion, else None.

    Raises: as `fused_disc_loss` and FeatureTap.take.
    """

    def __init__(
        self,
        *,
        gini_weight: float = GINI_WEIGHT,
        kl_weight: float = KL_WEIGHT,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        activation: str = "abs",
        impurity: str = "gini",
        prior: str | Tensor = "batch",
        feature_dim: int = 1,
        process_group: "ProcessGroup | str | None" = None,
        check_labels: str = "async",
        backend: str | None = None,
    ):
        super().__init__()
        self.weight: Tensor | None  # registered below
        self.prior: str | Tensor
        self.gini_weight = _inputs.non_negative("gini_weight", gini_weight)
        self.kl_weight = _inputs.non_negative("kl_weight", kl_weight)
        _inputs.one_of("reduction", reduction, _inputs.REDUCTIONS)
        _inputs.options(
            ignore_index, activation, feature_dim, check_labels, backend, impurity, process_group
        )
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = _inputs.label_smoothing(label_smoothing)
        self.activation = activation
        self.impurity = impurity
        self.feature_dim = feature_dim
        self.process_group = process_group
        self.check_labels = check_labels
        self.backend = backend
        for name, value in (("weight", weight), ("prior", prior)):
            if isinstance(value, Tensor):
                check = _inputs.weights if name == "prior" else _inputs.numbers
                check(name, value, value.numel(), value.device)
            elif name == "prior":
                _inputs.one_of(name, value, _inputs.PRIORS)
            elif value is not None:
                raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
            if value is None or isinstance(value, Tensor):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        self.terms: LossTerms | None = None
        self.tap: FeatureTap | None = None

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
        *,
        capture: str = "output",
        **options: Any,
    ) -> "FusedDiscLoss":
        """A criterion that taps the features of the model. FeatureTap describes the arguments.

        Without layers, the features are in the last dimension, and feature_dim is -1 by default.
        They are averaged over tokens, unless every token has its own target.
        """
        if layers is None:
            options.setdefault("feature_dim", -1)
        criterion = cls(**options)
        criterion.tap = FeatureTap(model, layers, capture=capture)
        return criterion

    def forward(
        self,
        logits: Any = None,
        target: Any = None,
        features: Tensor | Sequence[Tensor] | None = None,
        *,
        sample_weight: Tensor | None = None,
        class_sums: ClassSums | None = None,
        input: Any = None,  # the name of the logits in nn.CrossEntropyLoss
    ) -> Tensor:
        if logits is None:
            logits = input
        elif input is not None:
            raise TypeError("logits and input are both given, but mean the same: pass one of them")
        logits, features = self._logits_and_features(logits, features)
        if class_sums is None:
            class_sums = self._with_earlier(logits, target, features, sample_weight)
        loss, self.terms = fused_disc_loss(
            logits,
            target,
            features,
            weight=self.weight,
            prior=self.prior,
            sample_weight=sample_weight,
            process_group=self.process_group if self.training else None,
            class_sums=class_sums,
            return_terms=True,
            **{name: getattr(self, name) for name in _OPTIONS},
        )
        if in_transform():  # its tensors must not outlive it
            self.terms = None
        return loss

    @torch.no_grad()
    def class_sums(
        self,
        logits: Any,
        target: Tensor,
        features: Tensor | Sequence[Tensor] | None = None,
        *,
        sample_weight: Tensor | None = None,
    ) -> ClassSums:
        """The class sums of this micro-batch, for a first pass over the parts of a batch:

            with torch.no_grad(), torch.random.fork_rng():
                whole = sum(criterion.class_sums(model(x), y) for x, y in parts)
            for x, y in parts:
                loss = criterion(model(x), y, class_sums=whole)
                (loss / len(parts)).backward()

        The gradient then equals that of the whole batch: see `discfused.class_sums`.
        """
        logits, features = self._logits_and_features(logits, features)
        if features is None:
            raise ValueError("features is None, expected [N, D]: pass them or attach")
        return class_sums(
            features,
            target,
            logits.shape[1],
            weight=self.weight,
            ignore_index=self.ignore_index,
            sample_weight=sample_weight,
            activation=self.activation,
            feature_dim=self.feature_dim,
            check_labels=self.check_labels,
            backend=self.backend,
        )

    def _with_earlier(
        self,
        logits: Tensor,
        target: Any,
        features: Tensor | Sequence[Tensor] | None,
        sample_weight: Tensor | None,
    ) -> ClassSums | None:
        """The class sums that this call should use, if a subclass keeps earlier ones."""
        return None

    def _logits_and_features(
        self, logits: Any, features: Tensor | Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor | Sequence[Tensor] | None]:
        """Takes the features from the tap if none are given."""
        if not isinstance(logits, Tensor):
            logits = getattr(logits, "logits", logits)
        if features is None and self.tap is not None:
            logits = _inputs.tensor("logits", logits)
            features = self.tap.take(logits)
            if not isinstance(features, list) and features.dim() == 3:
                N, T, _ = features.shape
                if N * T == logits.shape[0] != N:  # every token is a sample
                    features = features.flatten(0, 1)
            _warn_without_gradient(logits, features)
        return logits, features

    def compute_loss_func(
        self, outputs: Any, labels: Tensor, num_items_in_batch: int | Tensor | None = None
    ) -> Tensor:
        """The loss for `transformers.Trainer(..., compute_loss_func=criterion.compute_loss_func)`.

        loss * n / num_items_in_batch, with n the number of labels as the Trainer counts them: all
        numbers but -100, which are N * C for class probabilities. The sum over the micro-batches of
        an accumulated step is the mean cross-entropy of the whole batch plus the mean of the
        micro-batches' terms, weighted by size. With process_group it is exact if the micro-batches
        of all processes have the same number of labels.

        Raises:
            ValueError: reduction is not "mean".
        """
        if self.reduction != "mean":
            raise ValueError(f"reduction is {self.reduction!r}, expected 'mean' with a Trainer")
        loss: Tensor = self(outputs, labels)
        if num_items_in_batch is None:
            return loss
        return loss * ((labels != -100).sum() / num_items_in_batch)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*_OPTIONS, "process_group"))


def _warn_without_gradient(logits: Tensor, features: Tensor | list[Tensor]) -> None:
    if torch.compiler.is_compiling() or not logits.requires_grad:
        return
    layers = features if isinstance(features, list) else [features]
    if not any(layer.requires_grad for layer in layers):
        warnings.warn(
            "the tapped features do not require grad, so the terms cannot train the model: the "
            "layer is frozen, runs under no_grad, or under checkpoint(use_reentrant=True)",
            stacklevel=4,
        )
