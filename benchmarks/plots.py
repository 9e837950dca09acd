"""The plot of a run: how long every form takes."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, with or without a screen
import matplotlib.pyplot as plt

from benchmarks.competitors import COPY, FUSED
from benchmarks.stored import Results
from benchmarks.tables import competitors


def draw(results: Results, path: Path) -> None:
    rows = results.select(kind="terms", direction="both")
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = plt.subplots(figsize=(11, 7), layout="constrained")
    for name in competitors(rows):
        mine = [row for row in rows if row["competitor"] == name]
        x = [row["seconds"][1] * 1e3 for row in mine]
        y = [cases.index(row["case"]) for row in mine]
        marker = {COPY: "|"}.get(name, "D" if name in FUSED else ".")
        axes.plot(x, y, linestyle="none", marker=marker, markersize=9, label=name)
    axes.set(xscale="log", xlabel="milliseconds of forward + backward of both terms (median)")
    axes.set_yticks(range(len(cases)), [case.removeprefix("terms-") for case in cases])
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title(f"{results.environment['device']}, torch {results.environment['torch']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)
