"""The demo's table, and its findings in words."""

import statistics

from discfused.recipes._paired import Paired, paired
from discfused.recipes.demo_data import FEATURES, LOSSES, Run


def table(runs: list[Run]) -> str:
    """Markdown, one line a loss, and below what the columns are."""
    lines = [
        "| loss | accuracy, % | sd | against ce | mean Gini | KL | live features | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for loss in LOSSES:
        accuracy, gini, kl, live, seconds = (
            _column(runs, loss, name) for name in ("accuracy", "gini", "kl", "live", "seconds")
        )
        spread = f"{statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else "-"
        against = "-" if loss == LOSSES[0] else _difference(_accuracy(runs, loss))
        lines.append(
            f"| {loss} | {statistics.mean(accuracy):.2f} | {spread} | {against} "
            f"| {statistics.mean(gini):.3f} | {statistics.mean(kl):.4f} "
            f"| {statistics.mean(live):.1f} of {FEATURES} | {statistics.median(seconds):.2f} |"
        )
    return "\n".join([
        *lines,
        "",
        "accuracy: on the test images, mean and standard deviation over the seeds; against ce:",
        "mean paired difference in points, and its standard error; Gini, KL, live features: means,",
        "of the features on the test images; seconds: median, of a training.",
    ])  # fmt: skip


def findings(runs: list[Run]) -> str:
    """Gain, loss or undecided, for each loss with terms: never more than the seeds say."""
    lines = []
    for loss in LOSSES[1:]:
        pairs = _accuracy(runs, loss)
        text = f"{_difference(pairs)} points of accuracy"
        if pairs.low == pairs.low:
            text += f", 95% interval {pairs.low:+.2f} to {pairs.high:+.2f}"
        text += f": {pairs.verdict}"
        ginis = zip(_column(runs, loss, "gini"), _column(runs, LOSSES[0], "gini"), strict=True)
        lower = sum(gini < without for gini, without in ginis)
        lines.append(f"{loss} against ce: {text}.")
        lines.append(f"  Gini of the features: lower with {lower} of {pairs.pairs} seeds.")
    lines.append("All seeds draw from the same 1,797 images: this tells of no other data.")
    return "\n".join(lines)


def _difference(pairs: Paired) -> str:
    return f"{pairs.mean:+.2f}" + (f" +- {pairs.error:.2f}" if pairs.error == pairs.error else "")


def _accuracy(runs: list[Run], loss: str) -> Paired:
    return paired(_column(runs, loss, "accuracy"), _column(runs, LOSSES[0], "accuracy"))


def _column(runs: list[Run], loss: str, name: str) -> list[float]:
    """Ordered by seed, so that two losses' columns pair up."""
    of_loss = sorted((run for run in runs if run.loss == loss), key=lambda run: run.seed)
    return [getattr(run, name) for run in of_loss]
