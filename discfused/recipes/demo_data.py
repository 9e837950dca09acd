"""What the demo learns from, and what is known of a run."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

CLASSES, FEATURES = 10, 64
PER_CLASS = 20  # training images of each digit
LOSSES = ("ce", "ce+gini", "ce+gini+kl")  # the first is what the others are compared to


class Split(NamedTuple):
    images: Tensor  # [N, 1, 8, 8] in [0, 1]
    digits: Tensor  # [N]
    train: Tensor  # indices
    test: Tensor


class Measured(NamedTuple):
    """A network on the test images."""

    accuracy: float  # percent
    gini: float
    kl: float
    histogram: Tensor  # [C, L] of the live features


class Run(NamedTuple):
    loss: str
    seed: int
    accuracy: float
    gini: float
    kl: float
    live: int  # features
    seconds: float  # of training


def split(seed: int, device: str = "cpu") -> Split:
    images, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    of_digit = [order[digits[order] == digit] for digit in range(CLASSES)]
    train = torch.cat([indices[:PER_CLASS] for indices in of_digit])
    test = torch.cat([indices[PER_CLASS:] for indices in of_digit])
    images = images.float().view(-1, 1, 8, 8) / 16
    return Split(images.to(device), digits.long().to(device), train, test)
