"""The demo's picture: for which digit does every feature fire, before and after?"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, with or without a screen
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from discfused.recipes.demo_data import CLASSES, Measured

NAMES = {
    "untrained": "before training",
    "ce": "trained with cross-entropy",
    "ce+gini+kl": "trained with cross-entropy + Gini + KL",
}
BARS = {"ce": "tab:blue", "ce+gini+kl": "tab:orange"}


def draw(shown: dict[str, Measured], digits: Tensor, path: Path) -> None:
    """`digits`: labels of the images that `shown` was measured on."""
    features = shown["untrained"].histogram.shape[1]
    figure, axes = plt.subplots(
        len(NAMES) + 1, 1, figsize=(9, 8.5), layout="constrained", height_ratios=[3, 3, 3, 2.2]
    )
    figure.get_layout_engine().set(h_pad=0.08)
    figure.suptitle(
        f"For which handwritten digit does each of the network's {features} features fire?",
        fontsize=14, weight="bold",
    )  # fmt: skip
    maps = axes[: len(NAMES)]
    for axis, (name, title) in zip(maps, NAMES.items(), strict=True):
        image = _heat_map(axis, shown[name], title)
    maps[-1].set_xlabel(
        "one column per feature, ordered by the digit that it fires for most\n"
        f"Gini is 0 for a feature that fires for one digit only, {1 - 1 / CLASSES:g} for one that "
        "fires for all alike"
    )
    bar = figure.colorbar(image, ax=maps, fraction=0.03, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "25%", "50%", "75%", "100%"])
    bar.set_label(f"share of a feature's mean activations\n({len(digits):,} test images, seed 0)")
    _shares(axes[-1], shown, digits)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def favourites(histogram: Tensor) -> tuple[Tensor, Tensor]:
    """P [C, L] with the features ordered by the class they fire for most, and that class [L]."""
    P = histogram / histogram.sum(0)
    P = P[:, P.isfinite().all(0)]  # not of dead features, and not of a training that diverged
    strength, favourite = P.max(0)
    order = (favourite - strength).argsort()  # within a class the purest first
    return P[:, order], favourite[order]


def _heat_map(axis, measured: Measured, title: str):
    P, _ = favourites(measured.histogram)
    P = P if P.shape[1] else torch.zeros(CLASSES, 1)  # no live feature: nothing but black
    image = axis.imshow(
        P.numpy(), aspect="auto", vmin=0, vmax=1, cmap="magma", interpolation="nearest"
    )
    axis.set(yticks=range(CLASSES), xticks=[], ylabel="digit")
    axis.tick_params("y", labelsize="small")
    axis.set_title(title, loc="left", weight="bold", fontsize=11)
    figures = f"mean Gini {measured.gini:.2f},  test accuracy {measured.accuracy:.1f}%"
    axis.set_title(figures, loc="right", fontsize=11)
    return image


def _shares(axis, shown: dict[str, Measured], digits: Tensor) -> None:
    """Features per class against samples per class, both in percent."""
    width = 0.27
    counts = {"test images": (digits, "0.75")}
    for name, color in BARS.items():
        label = f"features, {NAMES[name].removeprefix('trained ')}"
        counts[label] = favourites(shown[name].histogram)[1], color
    for index, (label, (classes, color)) in enumerate(counts.items()):
        share = 100 * torch.bincount(classes, minlength=CLASSES) / max(len(classes), 1)
        at = [digit + (index - 1) * width for digit in range(CLASSES)]
        axis.bar(at, share.tolist(), width, label=label, color=color)
    axis.set_title(
        "Does each digit get its share of the features?", loc="left", weight="bold", fontsize=11
    )
    axis.set_xlabel("digit; a feature counts for the digit that it fires for most")
    axis.set(xticks=range(CLASSES), ylabel="% of all", xlim=(-0.6, CLASSES - 0.4))
    axis.set_ylim(top=1.4 * axis.get_ylim()[1])
    axis.legend(ncols=len(counts), loc="upper center", fontsize="small", frameon=False)
