"""Paired tests: runs with the same seed, with and without a change."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

LEVEL = 0.95
SAME = 1e-3  # percentage points: less than one test image, more than rounding


class Paired(NamedTuple):
    """Accuracies in percent minus those of cross-entropy. For one pair, or equal differences, all
    fields except `pairs` and `mean` are NaN, because there is no spread."""

    pairs: int
    mean: float
    error: float  # standard error of the mean
    low: float  # 95% interval of the mean, by Student's t
    high: float
    p: float  # p-value of the paired t-test

    @property
    def verdict(self) -> str:
        if not self.p < 1 - LEVEL:
            return "undecided"
        return "gain" if self.mean > 0 else "loss"


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """d_i = values_i - baseline_i: mean(d), sd(d) / sqrt(n), interval and test of mean(d) = 0."""
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    n = len(differences)
    mean = statistics.mean(differences)
    if max(differences) - min(differences) < SAME:
        return Paired(n, mean, *[math.nan] * 4)
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(LEVEL)
    error = statistics.stdev(differences) / math.sqrt(n)
    return Paired(n, mean, error, float(low), float(high), float(test.pvalue))
