"""What pairs of runs say: the same seed, once with and once without."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

LEVEL = 0.95
SAME = 1e-3  # percentage points: one test image is more, rounding is less


class Paired(NamedTuple):
    """Accuracies in percent minus those of cross-entropy. One pair, or pairs that differ by the
    same, have no spread to test against: all but `pairs` and `mean` are NaN."""

    pairs: int
    mean: float
    error: float  # standard error of the mean
    low: float  # 95% interval of the mean, by Student's t
    high: float
    p: float  # of the paired t-test

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
