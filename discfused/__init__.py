"""Discriminability-enforcing losses: the features of a network fire for fewer classes."""

from discfused._class_sums import ClassSums
from discfused._version import __version__
from discfused.backends.triton_warmup import warmup
from discfused.functional import DiscTerms, disc_terms, fused_disc_loss
from discfused.histogram import class_histogram, class_sums
from discfused.inspection import report
from discfused.modules import FusedDiscLoss
from discfused.running import RunningDiscLoss
from discfused.tap import FeatureTap

__all__ = [
    "ClassSums",
    "DiscTerms",
    "FeatureTap",
    "FusedDiscLoss",
    "RunningDiscLoss",
    "__version__",
    "class_histogram",
    "class_sums",
    "disc_terms",
    "fused_disc_loss",
    "report",
    "warmup",
]
