"""The demo's results as a table."""

import statistics

from discfused.recipes._paired import Paired, paired
from discfused.recipes.demo_data import Run, Setup


def report(runs: list[Run]) -> str:
    """Markdown with one line per setup, and an explanation of the columns."""
    lines = [
        "| network | training | loss | test accuracy, % | against ce, points | 95% interval "
        "| p | verdict | Gini | KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for setup in dict.fromkeys(run.setup for run in runs):
        accuracy, gini, kl = (column(runs, setup, name) for name in ("accuracy", "gini", "kl"))
        loss = setup.loss + (", smoothed labels" if setup.smoothing else "")
        cells = [setup.network, setup.training, loss, f"{statistics.mean(accuracy):.2f}"]
        if setup == setup.baseline:
            cells += ["-"] * 4
        else:
            pairs = paired(accuracy, column(runs, setup.baseline, "accuracy"))
            cells += [_difference(pairs), _interval(pairs), _p(pairs), pairs.verdict]
        cells += [f"{statistics.mean(gini):.3f}", f"{statistics.mean(kl):.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([
        *lines,
        "",
        "training: with the settings of the paper's authors, or with the learning rate and weight",
        "decay that are best for ce. against ce: paired difference to ce with the same network and",
        "training, with its standard error; p: of the paired t-test, not corrected for the six",
        "comparisons; verdict: gain or loss if the 95% interval (Student's t) excludes 0. Gini and",
        "KL are computed on the test images. All seeds use the same 1,797 images, so the results",
        "hold for these data only.",
    ])  # fmt: skip


def _difference(pairs: Paired) -> str:
    return f"{pairs.mean:+.2f}" + (f" +- {pairs.error:.2f}" if pairs.error == pairs.error else "")


def _interval(pairs: Paired) -> str:
    return f"{pairs.low:+.2f} to {pairs.high:+.2f}" if pairs.low == pairs.low else "-"


def _p(pairs: Paired) -> str:
    return f"{pairs.p:.2g}" if pairs.p == pairs.p else "-"


def column(runs: list[Run], setup: Setup, name: str) -> list[float]:
    """Values ordered by seed, so that two setups can be paired."""
    chosen = [run for run in runs if run.setup == setup]
    return [getattr(run, name) for run in sorted(chosen, key=lambda run: run.seed)]
