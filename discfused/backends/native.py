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
    Terms,
    accumulation_dtype,
)

CODE = {activation: code for code, activation in enumerate(ACTIVATIONS)}


class CpuBackend:
    name = "cpu"
    device_type = "cpu"
    coef_rows = 4

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

    def keeps_slope(self, features: Tensor, slots: int) -> bool:
        return False  # blocks of columns stay in cache for the second look

    def histogram(
        self,
        features: Tensor,
        members: Members,
        activation: str,
        center: bool,
        mean: Tensor | None = None,
        slope: bool = False,
    ) -> Histogram:
        return Histogram(
            *self._kernels.histogram(
                features, members.slot, members.row_weight, members.total, members.soft,
                members.share.shape[0], CODE[activation], center, mean,
            )
        )  # fmt: skip

    def terms(
        self,
        histogram: Histogram,
        prior: Tensor,
        absent: Tensor | None,
        reverse: bool,
        eps: float,
        gini_weight: float,
        kl_weight: float,
    ) -> Terms:
        return Terms(
            *self._kernels.terms(
                histogram.table, histogram.magnitude, prior, absent, reverse, eps, gini_weight,
                kl_weight,
            )
        )  # fmt: skip

    def gradient(
        self,
        features: Tensor,
        members: Members,
        mean: Tensor | None,
        table: Tensor,
        activation: str,
        pull: Pull | None,
    ) -> Tensor:
        return self._kernels.gradient(
            features, members.slot, members.row_weight, members.total, members.soft, mean, table,
            CODE[activation], *(pull[:6] if pull else (None, None, None, None, 0.0, 0.0)),
        )  # fmt: skip
