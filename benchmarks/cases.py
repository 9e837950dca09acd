"""The cases as data: N samples, D features, C classes."""

from typing import NamedTuple

import torch


class Case(NamedTuple):
    name: str
    N: int
    D: int
    C: int

    @property
    def shape(self) -> str:
        return f"{self.N} x {self.D} x {self.C}"

    def least_bytes(self, dtype: torch.dtype) -> dict[str, int]:
        """What must cross memory: forward reads x, backward reads x and writes dx.

        Labels and the table of class histograms are not counted.
        """
        x = self.N * self.D * dtype.itemsize
        return {"forward": x, "backward": 2 * x, "both": 3 * x}


DIRECTIONS = ("forward", "backward", "both")

SMALL = Case("small", 128, 512, 100)  # CIFAR-like
CALTECH = Case("caltech", 256, 2048, 101)
IMAGENET = Case("imagenet", 1024, 2048, 1000)
TALL = Case("tall", 4096, 2048, 1000)
LARGE = Case("large", 8192, 4096, 1000)
MANY = Case("many-classes", 1024, 2048, 21841)
MANY_FEW = Case("many-classes-few-rows", 512, 1024, 21841)

CORE = [SMALL, CALTECH, IMAGENET, TALL, MANY_FEW]

# What forward + backward in float32 on 2 CPU threads shall reach: times faster than the best eager
# form, and at most so many times as long as copying x once.
CORE_GOALS = {"small": 2, "caltech": 3, "imagenet": 6, "tall": 8, "many-classes-few-rows": 20}
CORE_COPIES = {"tall": 5}


def _sweep(symbol: str, values: list[int]) -> list[Case]:
    return [IMAGENET._replace(name=f"{symbol}{value}", **{symbol: value}) for value in values]


SWEEPS = {
    "sweep_N": _sweep("N", [64, 256, 1024, 4096, 16384]),
    "sweep_D": _sweep("D", [128, 512, 2048, 8192]),
    "sweep_C": _sweep("C", [10, 100, 1000, 10000, 21841]),
}

SUITES = {"core": CORE, "cases": [LARGE, MANY], **SWEEPS}
QUICK = ("core",)  # the suites of the quick mode; `--full` runs them all

DTYPES = {"cpu": [torch.float32], "cuda": [torch.bfloat16, torch.float32]}

# The criterion on next to no data: what a call costs beside arithmetic. The second one where a GPU
# hides the arithmetic too.
HOST_CASES = {
    "cpu": [Case("tiny", 8, 16, 10)],
    "cuda": [Case("tiny", 8, 16, 10), Case("caltech-host", 256, 2048, 100)],
}


class Training(NamedTuple):
    """A training step: SGD with momentum, as in the network's paper."""

    name: str
    depth: int  # of the ResNet
    pixels: int
    batch: int
    classes: int
    autocast: bool  # bfloat16


RESNET18 = Training("resnet18-32px", 18, 32, 128, 100, autocast=False)
RESNET18_QUICK = RESNET18._replace(name="resnet18-32px-batch32", batch=32)
RESNET50 = Training("resnet50-224px", 50, 224, 256, 1000, autocast=True)


def trainings(device: str, full: bool) -> list[Training]:
    if device == "cuda":
        return [RESNET18, RESNET50]
    return [RESNET18 if full else RESNET18_QUICK]


class Plan(NamedTuple):
    """How long to measure a group."""

    seconds: float  # stop after these, if
    min_rounds: int  # so many rounds are done; in a round every competitor has its turn
    max_rounds: int
    turn: float  # seconds of a turn: quick competitors are called several times


PLANS = {
    "quick": Plan(seconds=4, min_rounds=3, max_rounds=25, turn=0.01),
    "full": Plan(seconds=20, min_rounds=7, max_rounds=60, turn=0.03),
}
TRAINING_PLANS = {
    "quick": Plan(seconds=15, min_rounds=3, max_rounds=9, turn=0.02),
    "full": Plan(seconds=180, min_rounds=15, max_rounds=60, turn=0.05),
}
