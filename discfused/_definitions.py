"""The definitions that the reference and every other backend must agree on."""

import torch
from torch import Tensor

# How much a feature fires for a sample: phi(x) >= 0 with phi'(0) = 0. "abs" is the paper's.
ACTIVATIONS = ("abs", "relu")

# The impurity of a feature's class distribution. "gini" is the paper's.
IMPURITIES = ("gini", "collision")

# q_c in the Kullback-Leibler term is never smaller; a clamped q_c passes no gradient.
PROBABILITY_FLOOR = 1e-10


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of every sum over features of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def activate(x: Tensor, activation: str) -> Tensor:
    """phi(x)"""
    if activation == "abs":
        return x.abs()
    return torch.where(x > 0, x, 0 * x)  # not 0: what is not finite must not be lost
