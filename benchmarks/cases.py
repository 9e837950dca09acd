"""The cases as data, and their inputs. N samples, D features, C classes.

Neither here nor in `timing` is discfused imported: `compare` runs them with older builds, too.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DIRECTIONS = ("forward", "backward", "both")


class Case(NamedTuple):
    N: int
    D: int
    C: int
    dtype: str = "float32"
    impurity: str = "gini"
    # "terms": gini + kl. "loss": cross-entropy and both terms, weighted: what a call costs where
    # there is little to compute. "step": a training step of ResNet-50 with that loss.
    kind: str = "terms"

    @property
    def name(self) -> str:
        impurity = [] if self.impurity == "gini" else [self.impurity]
        return "-".join([self.kind, f"{self.N}x{self.D}x{self.C}", self.dtype, *impurity])

    @property
    def directions(self) -> tuple[str, ...]:
        return ("both",) if self.kind == "step" else DIRECTIONS

    def least_bytes(self) -> dict[str, int]:
        """What must cross memory: forward reads x, backward reads x and writes dx.

        Labels and the table of class histograms are not counted.
        """
        x = self.N * self.D * getattr(torch, self.dtype).itemsize
        return {"forward": x, "backward": 2 * x, "both": 3 * x}


TINY = Case(8, 16, 10, kind="loss")
SMALL = Case(128, 512, 100)  # CIFAR-like
CALTECH = Case(256, 2048, 101)
IMAGENET = Case(1024, 2048, 1000)
TALL = Case(4096, 2048, 1000)
LARGE = Case(8192, 4096, 1000)
FEW_ROWS = Case(512, 1024, 21841)  # most classes are absent
MANY_CLASSES = Case(1024, 2048, 21841)
STEP = Case(256, 2048, 1000, "bfloat16", kind="step")


def _with(cases: list[Case], **options: str) -> list[Case]:
    return [case._replace(**options) for case in cases]


FULL = [
    SMALL, CALTECH, IMAGENET, TALL, LARGE, FEW_ROWS, MANY_CLASSES, TINY,
    *_with([CALTECH, IMAGENET, TALL, LARGE], dtype="bfloat16"),
    *_with([CALTECH, IMAGENET, FEW_ROWS], impurity="collision"),
]  # fmt: skip
QUICK = {
    "cpu": [SMALL, Case(32, 64, 2000), TINY, *_with([SMALL], dtype="bfloat16"),
            *_with([SMALL], impurity="collision")],
    "cuda": [*_with([IMAGENET, CALTECH, LARGE, MANY_CLASSES], dtype="bfloat16"), IMAGENET, TINY],
}  # fmt: skip
# Where a GPU hides the arithmetic, a larger call costs what a tiny one does; and only on a GPU is a
# training step so short that the loss shows in it.
ON_GPUS = [CALTECH._replace(kind="loss"), STEP]


def cases(device: str, full: bool) -> list[Case]:
    chosen = FULL if full else QUICK[device]
    return [*chosen, *ON_GPUS] if device == "cuda" else chosen


class Plan(NamedTuple):
    """How long to measure a case."""

    seconds: float  # stop after these, if
    min_rounds: int  # so many rounds are done; in a round every competitor has its turn
    max_rounds: int
    turn: float  # seconds of a turn: quick competitors are called several times


PLANS = {
    "quick": Plan(seconds=1.5, min_rounds=3, max_rounds=25, turn=0.01),
    "full": Plan(seconds=20, min_rounds=7, max_rounds=60, turn=0.03),
}


class Inputs(NamedTuple):
    sets: list[tuple[Tensor, ...]]  # x [N, D], with logits [N, C] for a loss: leaves, used in turns
    y: Tensor  # [N]


def make_inputs(case: Case, device: str) -> Inputs:
    """Non-negative like average-pooled ReLU maps; random labels, so that some classes are absent.

    On a GPU there are enough sets to overflow its cache, because a training step would. On a CPU
    small features come from the cache, as they do when a network has just written them.
    """
    generator = torch.Generator().manual_seed(0)
    count = 1
    if device == "cuda":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        count = max(1, min(64, 2 * cache // case.least_bytes()["forward"]))
    x = torch.randn(case.N, case.D, generator=generator).abs_()
    leaves = [x.to(device, getattr(torch, case.dtype))]
    if case.kind != "terms":  # float32 logits, as autocast makes them
        leaves.append(torch.randn(case.N, case.C, generator=generator).to(device))
    y = torch.randint(0, case.C, (case.N,), generator=generator).to(device)
    return Inputs(
        [tuple(leaf.clone().requires_grad_() for leaf in leaves) for _ in range(count)], y
    )
