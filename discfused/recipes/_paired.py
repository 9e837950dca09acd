"""What pairs of runs say: the same seed, once with and once without."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit

# Fewer differences can be alike by chance, and their standard error says too little.
FEWEST_PAIRS = 5


class Paired(NamedTuple):
    pairs: int
    mean: float  # of the differences
    error: float  # standard error of the mean; NaN with one pair
    low: float  # 95% interval of the mean, by Student's t; unbounded with one pair
    high: float

    @property
    def verdict(self) -> str:
        if self.pairs >= FEWEST_PAIRS:
            if self.low > 0:
                return "a gain"
            if self.high < 0:
                return "a loss"
        return "undecided"


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """d_i = values_i - baseline_i: mean(d), sd(d) / sqrt(n), mean(d) +- t(97.5%, n - 1) error."""
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    n = len(differences)
    mean = statistics.mean(differences)
    if n == 1:
        return Paired(n, mean, math.nan, -math.inf, math.inf)
    error = statistics.stdev(differences) / math.sqrt(n)
    margin = float(stdtrit(n - 1, 0.975)) * error
    return Paired(n, mean, error, mean - margin, mean + margin)
