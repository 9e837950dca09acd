"""The demo's picture: heat maps of digits by features, before and after training."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from discfused.inspection import figures
from discfused.inspection.measure import Run
from discfused.recipes.demo_data import CLASSES, NAMES

COLORS = {"ce": "tab:blue", "ce+gini+kl": "tab:orange"}

Shown = tuple[float, Run]  # test accuracy in percent, and the network on the test images


def draw(shown: dict[str, Shown], path: Path) -> None:
    _, first = shown["untrained"]
    figure = Figure(figsize=(9, 8.5), layout="constrained")
    axes = figure.subplots(len(NAMES) + 1, 1, height_ratios=[3, 3, 3, 2.2])
    layout: Any = figure.get_layout_engine()
    layout.set(h_pad=0.08)
    figure.suptitle(
        f"For which handwritten digit does each of the network's {len(first.last.live)} features "
        "fire?",
        fontsize=14, weight="bold",
    )  # fmt: skip
    maps = axes[: len(NAMES)]
    for axis, (loss, name) in zip(maps, NAMES.items(), strict=True):
        accuracy, run = shown[loss]
        image = figures.heat_map(axis, run.last)
        axis.set(yticks=range(CLASSES), xticks=[], ylabel="digit")
        axis.tick_params("y", labelsize="small")
        title = name if loss == "untrained" else f"trained with {name}"
        axis.set_title(title, loc="left", weight="bold", fontsize=11)
        numbers = f"mean Gini {run.last.mean_gini:.2f},  test accuracy {accuracy:.1f}%"
        axis.set_title(numbers, loc="right", fontsize=11)
    maps[-1].set_xlabel(
        "one column per feature, ordered by the digit that it fires for most\n"
        f"Gini is 0 for a feature that fires for one digit only, {1 - 1 / CLASSES:g} for one that "
        "fires for all alike"
    )
    bar = figure.colorbar(image, ax=maps, fraction=0.03, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "25%", "50%", "75%", "100%"])
    bar.set_label(f"share of a feature's mean activations\n({first.samples:,} test images, seed 0)")
    bars = {f"features, with {NAMES[loss]}": (shown[loss][1].last, color)
            for loss, color in COLORS.items()}  # fmt: skip
    figures.class_bars(axes[-1], bars, "test images", range(CLASSES))
    axes[-1].set_title(
        "Does each digit get its share of the features?", loc="left", weight="bold", fontsize=11
    )
    axes[-1].set_xlabel("digit; a feature counts for the digit that it fires for most")
    figure.savefig(path, dpi=100)
