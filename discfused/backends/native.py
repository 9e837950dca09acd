"""The contract on the CPU kernels of the compiled library `discfused._C`."""

import torch
from torch import Tensor

from discfused.backends import _library
from discfused.backends.contract import (
    ACTIVATIONS,
    Histogram,
    Labels,
    Members,
    Pull,
    Settings,
    Terms,
    accumulation_dtype,
    dead_threshold,
)

CODE = {activation: code for code, activation in enumerate(ACTIVATIONS)}


class CpuBackend:
    name = "cpu"
    device_type = "cpu"
    coef_rows = 3
    keeps_table = False  # blocks of it live in the cache, or are saved

    def unavailable(self) -> str | None:
        try:
            _library.load()
        except _library.LibraryUnavailable as error:
            return str(error)
        return None

    @property
    def _kernels(self):
        return _library.load().cpu

    def members(self, labels: Labels, slots: int, features: Tensor, activation: str) -> Members:
        target, weight, sample_weight, num_classes, ignore_index = labels
        return Members(
            *self._kernels.members(
                target, weight, sample_weight, num_classes, slots, ignore_index,
                accumulation_dtype(features.dtype) == torch.float64,
            )
        )  # fmt: skip

    def keeps_slope(self, features: Tensor, num_classes: int) -> bool:
        return False  # gradient makes its own

    def forward(
        self,
        features: Tensor,
        members: Members,
        prior: Tensor,
        absent: Tensor | None,
        settings: Settings,
        gini_weight: float,
        kl_weight: float,
        slope: bool,
        save: bool,
    ) -> tuple[Terms, Histogram]:
        activation = settings.activation
        save = save and activation == "relu" and members.soft is None  # one bit tells the slope
        penalty, gini, kl, mean, feature_coef, slot_coef, saved = self._kernels.terms(
            features, members.slot, members.row_weight, members.total, members.soft, prior, absent,
            CODE[activation], settings.center, settings.reverse, dead_threshold(settings),
            gini_weight, kl_weight, save,
        )  # fmt: skip
        return Terms(penalty, gini, kl, feature_coef, slot_coef), Histogram(mean, saved)

    def histogram(
        self, features: Tensor, members: Members, activation: str, center: bool
    ) -> Histogram:
        return Histogram(
            *self._kernels.histogram(
                features, members.slot, members.row_weight, members.total, members.soft,
                members.share.shape[0], CODE[activation], center,
            )
        )  # fmt: skip

    def gradient(
        self,
        features: Tensor,
        members: Members,
        mean: Tensor | None,
        table: Tensor | None,
        activation: str,
        pull: Pull | None,
    ) -> Tensor:
        if pull is None:
            upstream = table, None, None, None, None, 0.0, 0.0, None
        else:
            upstream = None, *pull[:6], table
        return self._kernels.gradient(
            features, members.slot, members.row_weight, members.total, members.soft, mean,
            CODE[activation], *upstream,
        )  # fmt: skip
