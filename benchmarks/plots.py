"""Three plots of a run: bandwidth over size, speed-up over C, overhead of a training step."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, with or without a screen
import matplotlib.pyplot as plt

from benchmarks.competitors import COPY, FUSED
from benchmarks.losses import CROSS_ENTROPY
from benchmarks.stored import Results


def draw(results: Results, path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(17, 6.5), layout="constrained")
    _bandwidth(results, axes[0])
    _speedup(results, axes[1])
    _overhead(results, axes[2])
    figure.suptitle(f"{results.environment['device']}, torch {results.environment['torch']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """(competitor, dtype) -> rows"""
    lines: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        lines.setdefault((row["competitor"], row["dtype"]), []).append(row)
    return lines


def _style(name: str) -> dict:
    if name == COPY:
        return {"color": "black", "linestyle": "--"}
    return {"linewidth": 2.5, "marker": "o"} if name in FUSED else {"marker": "."}


def _empty(axes, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes)


def _legend(axes) -> None:
    """Below the axes, where it covers no line."""
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _bandwidth(results: Results, axes) -> None:
    axes.set_title("Forward + backward: least bytes over time")
    rows = results.select(("sweep_N",), direction="both")
    if not rows:  # with C > N the plain forms pay for C, not for x
        rows = results.select(("core", "cases"), direction="both")
        rows = [row for row in rows if row["C"] <= row["N"]]
    if not rows:
        return _empty(axes, "not measured")
    for (name, dtype), line in _lines(rows).items():
        line.sort(key=lambda row: row["bytes"])
        x = [row["bytes"] / 3e6 for row in line]  # forward + backward move x three times
        axes.plot(x, [row["gb_per_s"] for row in line], label=f"{name}, {dtype}", **_style(name))
    axes.set(xscale="log", yscale="log", xlabel="x, megabytes", ylabel="GB/s")
    _legend(axes)


def _speedup(results: Results, axes) -> None:
    axes.set_title("Forward + backward: speed-up of discfused over C")
    rows = results.select(("sweep_C",), direction="both")
    if not rows:
        return _empty(axes, "measured with --full")
    for (name, dtype), line in _lines(rows).items():
        if name not in FUSED:
            continue
        line.sort(key=lambda row: row["C"])
        for other in dict.fromkeys(other for row in line for other in row["speedup"]):
            if other.startswith(("eager", "compile")):
                seen = [row for row in line if other in row["speedup"]]
                y = [row["speedup"][other] for row in seen]
                axes.plot([row["C"] for row in seen], y, marker="o",
                          label=f"{name} over {other}, {dtype}")  # fmt: skip
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="C", ylabel="times as fast")
    _legend(axes)


def _overhead(results: Results, axes) -> None:
    axes.set_title("Loss beyond cross-entropy, share of a step")
    rows = results.select(("training",), direction="loss")
    rows = [row for row in rows if row["competitor"] != CROSS_ENTROPY]
    if not rows:
        return _empty(axes, "not measured")
    names = [f"{row['case']}\n{row['competitor']}" for row in rows]
    values = [row["added_percent"]["median"] for row in rows]
    low = [max(0, v - row["added_percent"]["p20"]) for v, row in zip(values, rows, strict=True)]
    high = [max(0, row["added_percent"]["p80"] - v) for v, row in zip(values, rows, strict=True)]
    axes.barh(names, values, xerr=[low, high], color="tab:blue", capsize=4)
    axes.set(xlabel="percent (bar: median; line: 20 to 80 percentile)")
