"""The contract on the CUDA kernels of the compiled library `discfused._C`.

Launches for hard labels, and bytes (e: bytes of a feature, a: 4, or 8 for float64):

    members    1   labels, and the moments of the features: reads N D e
               6   where rows are sorted instead of counted (N > 32768; N > 4096 with C > N)
    histogram  1   reads N D e, from L2 as far as it fits; writes S D a, with the slope 2 S D a
               2   for slots of thousands of rows (fold)
    terms      2   reads 3 S D a, with the slope 4 S D a; 1 for small tables (S D <= 16384)
    gradient   1   reads N D e, writes N D e, gathers N D a
               2   centred, without the slope (class_histogram, soft labels, large batches with
                   C > N): reads all twice
"""

import torch
from torch import Tensor

from discfused.backends import _library, soft
from discfused.backends.bad_labels import bad_labels
from discfused.backends.contract import (
    Histogram,
    Labels,
    Members,
    Pull,
    Terms,
    ThroughTable,
)
from discfused.backends.native import CODE

SMALL = 1 << 20  # elements of features


class CudaBackend(ThroughTable):
    name = "cuda"
    device_type = "cuda"
    coef_rows = 6

    def unavailable(self) -> str | None:
        return _library.cuda_missing()

    @property
    def _kernels(self):
        return _library.load().cuda

    def keeps_slope(self, features: Tensor, num_classes: int) -> bool:
        # With a slot for every row, writing and reading it costs what the second look at x does,
        # and as much memory as the table: worth it only to save the launch.
        return num_classes <= features.shape[0] or features.numel() <= SMALL

    def members(self, labels: Labels, slots: int, features: Tensor, activation: str) -> Members:
        target, weight, sample_weight, num_classes, ignore_index = labels
        bad = bad_labels(features.device)
        bad.check()
        *found, rows, sums = self._kernels.members(
            target, weight, sample_weight, num_classes, slots, ignore_index, features,
            CODE[activation], bad.flag,
        )  # fmt: skip
        bad.check_now()
        return Members(*found, extra=(rows, sums))

    def histogram(
        self,
        features: Tensor,
        members: Members,
        activation: str,
        center: bool,
        mean: Tensor | None = None,
        slope: bool = False,
    ) -> Histogram:
        if members.soft is not None:
            return soft.histogram(self._kernels.matmul, features, members, activation, center, mean)
        return Histogram(
            *self._kernels.histogram(
                features, members.row_weight, members.total, members.share.shape[0],
                *members.extra, CODE[activation], center, mean, slope,
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
                histogram.table, histogram.magnitude, histogram.slope, prior, absent, reverse, eps,
                gini_weight, kl_weight,
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
        bad_labels(features.device).check()
        if features.shape[0] == 0:
            return torch.empty_like(features, memory_format=torch.contiguous_format)
        slot = members.slot
        if members.soft is not None:
            matmul = self._kernels.matmul
            slot, table, pull = None, soft.row_gradient(matmul, members.soft, table, pull), None
        return self._kernels.gradient(
            features, slot, members.row_weight, members.total, mean, table, CODE[activation],
            *(pull or (None, None, None, None, 0.0, 0.0, False)),
        )  # fmt: skip
