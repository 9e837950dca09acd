"""The contract on top of the compiled library `discfused._C`."""

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
)

_CODE = {activation: code for code, activation in enumerate(ACTIVATIONS)}


class CpuBackend:
    name = "cpu"
    device_type = "cpu"

    def unavailable(self) -> str | None:
        try:
            _library.load()
        except _library.LibraryUnavailable as error:
            return str(error)
        return None

    @property
    def _kernels(self):
        return _library.load().cpu

    def members(self, labels: Labels, slots: int, dtype: torch.dtype) -> Members:
        target, weight, sample_weight, num_classes, ignore_index = labels
        return Members(
            *self._kernels.members(
                target, weight, sample_weight, num_classes, slots, ignore_index,
                dtype == torch.float64,
            )
        )  # fmt: skip

    def histogram(
        self,
        features: Tensor,
        members: Members,
        activation: str,
        center: bool,
        mean: Tensor | None = None,
    ) -> Histogram:
        slot, row_weight, total, _, share, soft = members
        return Histogram(
            *self._kernels.histogram(
                features, slot, row_weight, total, soft, share.shape[0], _CODE[activation],
                center, mean,
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
        _, table, magnitude = histogram
        return Terms(
            *self._kernels.terms(
                table, magnitude, prior, absent, reverse, eps, gini_weight, kl_weight
            )
        )

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
            _CODE[activation], *(pull or (None, None, None, None, 0.0, 0.0)),
        )  # fmt: skip
