"""The data, networks and runs of the demo."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

CLASSES = 10
MEAN, STD = (torch.tensor(values).view(3, 1, 1)
             for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip


class Split(NamedTuple):
    images: Tensor  # [N, 3, 8, 8], three equal channels, normalised as in the recipes
    digits: Tensor  # [N]
    train: Tensor  # indices
    test: Tensor


class Measured(NamedTuple):
    """Results of a network on the test images."""

    accuracy: float  # percent
    gini: float
    kl: float


class Setup(NamedTuple):
    """The settings in which the runs of a seed differ."""

    network: str
    training: str  # "paper", or "tuned" for cross-entropy
    loss: str
    smoothing: float = 0.0  # of the labels

    @property
    def terms(self) -> bool:
        return self.loss != "ce"

    @property
    def baseline(self) -> "Setup":
        return self._replace(loss="ce", smoothing=0.0)


SETUPS = (
    Setup("resnet", "paper", "ce"),
    Setup("resnet", "paper", "ce", 0.1),  # the cheap alternative
    Setup("resnet", "paper", "ce+gini"),
    Setup("resnet", "paper", "ce+kl"),
    Setup("resnet", "paper", "ce+gini+kl"),
    Setup("resnet", "tuned", "ce"),
    Setup("resnet", "tuned", "ce+gini+kl"),
    Setup("plain", "paper", "ce"),
    Setup("plain", "paper", "ce+gini+kl"),
)
SHOWN = SETUPS[0], SETUPS[4]  # shown in the picture, the report and the progress messages
NAMES = {  # there
    "untrained": "before training",
    "ce": "cross-entropy",
    "ce+gini+kl": "cross-entropy + Gini + KL",
}


class Run(NamedTuple):
    setup: Setup
    seed: int
    accuracy: float
    gini: float
    kl: float
    seconds: float  # of training


def split(seed: int, per_class: int, device: str = "cpu") -> Split:
    """`per_class` training images of each digit; the others are test images."""
    images, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    of_digit = [order[digits[order] == digit] for digit in range(CLASSES)]
    train = torch.cat([indices[:per_class] for indices in of_digit])
    test = torch.cat([indices[per_class:] for indices in of_digit])
    images = (images.float().view(-1, 1, 8, 8) / 16 - MEAN) / STD
    images = images.contiguous(memory_format=torch.channels_last)
    return Split(images.to(device), digits.long().to(device), train, test)


def resnet() -> nn.Module:
    """ResNet-18 with a quarter of the width, a 3 x 3 stem and no pooling, as in the recipes, but
    without torchvision."""
    layers, channels = [*_convolution(3, 16), nn.ReLU()], 16
    for out in (16, 32, 64, 128):
        layers += [_Block(channels, out), _Block(out, out)]
        channels = out
    return nn.Sequential(*layers, *_classifier(channels))


def plain() -> nn.Module:
    """Three convolutions."""
    return nn.Sequential(
        *_convolution(3, 16), nn.ReLU(),
        *_convolution(16, 32), nn.ReLU(),
        nn.MaxPool2d(2),
        *_convolution(32, 64), nn.ReLU(),
        *_classifier(64),
    )  # fmt: skip


NETWORKS = {"resnet": resnet, "plain": plain}


class _Block(nn.Module):
    """relu(shortcut(x) + two convolutions of x), at half the pixels where the channels double."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        stride = out // channels
        self.first = nn.Sequential(*_convolution(channels, out, stride=stride))
        self.second = nn.Sequential(*_convolution(out, out))
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(*_convolution(channels, out, size=1, stride=stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


def _convolution(channels: int, out: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(out)]


def _classifier(features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES)]
