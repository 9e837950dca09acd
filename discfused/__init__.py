"""Discriminability-enforcing losses: every feature of a network speaks for one class."""

from discfused._version import __version__
from discfused.backends.triton_warmup import warmup
from discfused.functional import DiscTerms, class_histogram, disc_terms, fused_disc_loss
from discfused.modules import FusedDiscLoss
from discfused.tap import FeatureTap

__all__ = [
    "DiscTerms",
    "FeatureTap",
    "FusedDiscLoss",
    "__version__",
    "class_histogram",
    "disc_terms",
    "fused_disc_loss",
    "warmup",
]
