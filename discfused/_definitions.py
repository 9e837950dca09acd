"""The definitions that the reference and every other backend must agree on."""

import torch
from torch import Tensor

# How strongly a feature fires for a sample: phi(x) >= 0 with phi'(0) = 0. "abs" is the paper's.
ACTIVATIONS = ("abs", "relu")

# The impurity of a feature's class distribution. "gini" is the paper's.
IMPURITIES = ("gini", "collision")

# Lower bound of q_c in the Kullback-Leibler term. A clamped q_c has gradient 0.
PROBABILITY_FLOOR = 1e-10


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of every sum over features of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def activate(x: Tensor, activation: str) -> Tensor:
    """phi(x)"""
    if activation == "abs":
        return x.abs()
    return torch.where(x > 0, x, 0 * x)  # not 0, so that NaN and infinity stay
