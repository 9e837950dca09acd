"""The matplotlib figures of the report, the demo and training logs.

They need no display and do not change the state of pyplot. The data are `Discriminability` objects.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.style
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor

from discfused._discriminability import Discriminability
from discfused.inspection.exciting import KEPT
from discfused.inspection.measure import Run

SAMPLES = "0.6"  # gray, in both appearances
CELLS = 500, 800  # classes and features of a heat map: more are merged into one cell
NAMED = 110  # up to this number every class has a label
BARS = 30  # up to this number of classes there are bars

_COLORS_OF = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_APPEARANCES = {
    "light": {"figure.facecolor": "#ffffff", "axes.facecolor": "#ffffff"}
    | dict.fromkeys(_COLORS_OF, "#1f2328"),
    "dark": {"figure.facecolor": "#161a20", "axes.facecolor": "#161a20"}
    | dict.fromkeys(_COLORS_OF, "#d5dae1"),
}
APPEARANCES = tuple(_APPEARANCES)


@contextlib.contextmanager
def appearance(name: str) -> Iterator[None]:
    shared = {
        "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "legend.frameon": False,
        "text.parse_math": False,  # names of classes and runs may contain $
    }  # fmt: skip
    with matplotlib.style.context(["default", shared | _APPEARANCES[name]]):
        yield


# --- parts of figures ---------------------------------------------------------------------------


def heat_map(axis: Axes, values: Discriminability, vmax: float = 1.0) -> AxesImage:
    """P with features ordered by class. A cell of several values shows the largest."""
    P = values.shares()[:, values.order()]
    C, L = P.shape
    if not L:  # no live feature: all black
        P = P.new_zeros(C, 1)
    size = min(C, CELLS[0]), min(P.shape[1], CELLS[1])
    return axis.imshow(
        F.adaptive_max_pool2d(P.float()[None], size)[0].numpy(),
        aspect="auto", vmin=0, vmax=vmax, cmap="magma", interpolation="nearest",
        extent=(-0.5, max(L, 1) - 0.5, C - 0.5, -0.5),
    )  # fmt: skip


def brightest(values: Sequence[Discriminability]) -> float:
    """The upper end of the colours of heat maps: the P of 19 of 20 features are below."""
    shares = torch.cat([each.strongest_share[each.strongest_class >= 0] for each in values])
    if not len(shares):
        return 1.0
    return min(1.0, math.ceil(100 * shares.float().quantile(0.95).item()) / 100)


def class_bars(
    axis: Axes,
    values: Mapping[str, tuple[Discriminability, str]],
    samples: str,
    names: Sequence[Any],
) -> None:
    """Bars of features per class, {label: (values, colour)}, and samples per class, in percent."""
    first, _ = next(iter(values.values()))
    bars = {samples: (first.samples_per_class, SAMPLES)} | {
        label: (each.features_per_class, color) for label, (each, color) in values.items()
    }
    width = 0.8 / len(bars)
    for index, (label, (counts, color)) in enumerate(bars.items()):
        at = torch.arange(len(counts)) + (index - (len(bars) - 1) / 2) * width
        axis.bar(at.tolist(), _percent(counts).tolist(), width, label=label, color=color)
    _name_classes(axis.xaxis, names)
    axis.set(ylabel="% of all", xlim=(-0.6, len(names) - 0.4))
    axis.set_ylim(top=1.4 * axis.get_ylim()[1])
    axis.legend(ncols=len(bars), loc="upper center", fontsize="small", frameon=False)


def _class_curve(axis: Axes, values: Discriminability, color: str, samples: str) -> None:
    """As `class_bars`, for many classes, in the order of their number of features."""
    order = values.features_per_class.argsort(descending=True, stable=True)
    features, counts = _percent(values.features_per_class), _percent(values.samples_per_class)
    rank = range(1, len(order) + 1)
    axis.fill_between(rank, features[order].tolist(), step="mid", color=color, alpha=0.8,
                      label="features")  # fmt: skip
    axis.plot(rank, counts[order].tolist(), ".", color=SAMPLES, markersize=3, label=samples)
    axis.set(xlabel="classes, by their number of features", ylabel="% of all", xlim=(0, len(rank)))
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper right", fontsize="small")


def _percent(counts: Tensor) -> Tensor:
    return 100 * counts / counts.sum().clamp(min=1)


def _name_classes(axis: Any, names: Sequence[Any]) -> None:
    """Ticks with class names; with many classes only some of them."""
    step = 1 if len(names) <= NAMED else math.ceil(len(names) / 40)
    shown = range(0, len(names), step)
    axis.set_ticks(list(shown))
    size = 8 if len(names) <= BARS else 5
    labels = [
        name if len(name) <= 18 else name[:17] + "…" for name in (str(names[c]) for c in shown)
    ]
    turned = {"rotation": 90} if axis.axis_name == "x" and max(map(len, labels)) > 3 else {}
    axis.set_ticklabels(labels, fontsize=size, **turned)


# --- figures ------------------------------------------------------------------------------------


def heat_maps(runs: Mapping[str, Discriminability], names: Sequence[Any]) -> Figure:
    """P of each run, side by side."""
    C = len(names)
    height = min(max(3.5, 1.2 + 0.2 * C if C <= BARS else 1.2 + 0.075 * C), 9)
    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    vmax = brightest([*runs.values()])
    for axis, (name, values) in zip(axes, runs.items(), strict=True):
        image = heat_map(axis, values, vmax)
        ordered = int((values.strongest_class >= 0).sum())
        axis.set(title=name, xlabel=f"{ordered:,} features, by their class")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _name_classes(axes[0].yaxis, names)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, extend="max" if vmax < 1 else "neither")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    bar.set_label("share of a feature's mean activations")
    return figure


def distributions(runs: Mapping[str, Discriminability]) -> Figure:
    """Histograms of Gini, effective number of classes and selectivity over the live features."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (field, label) in zip(
        axes,
        {"gini": "Gini impurity", "effective_classes": "effective number of classes",
         "selectivity": "class selectivity index"}.items(),
        strict=True,
    ):  # fmt: skip
        found = {name: getattr(each, field)[each.live] for name, each in runs.items()}
        found = {name: each[each.isfinite()].float() for name, each in found.items()}
        together = torch.cat([*found.values()])
        low, high = (float(x) for x in together.aminmax()) if len(together) else (0.0, 1.0)
        if field == "effective_classes":
            low, high = low or 1, max(high, low + 0.1)
            edges = torch.linspace(low, high, 41)
            if high > 10 * low:
                edges = torch.logspace(math.log10(low), math.log10(high), 41)
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.xaxis.set_major_formatter("{x:g}")
                axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            edges = torch.linspace(math.floor(20 * low) / 20, math.ceil(20 * high) / 20 or 1, 41)
        for index, (name, each) in enumerate(found.items()):
            options = {"bins": edges.tolist(), "color": f"C{index}"}
            axis.hist(each.tolist(), histtype="stepfilled", alpha=0.6 / len(runs), **options)
            axis.hist(each.tolist(), histtype="step", label=name, **options)
        axis.set(xlabel=label)
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("features")
    if len(runs) > 1:
        axes[0].legend(fontsize="small")
    return figure


def features_per_class(runs: Mapping[str, Discriminability], names: Sequence[Any]) -> Figure:
    if len(names) <= BARS:
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        colored = {name: (each, f"C{i}") for i, (name, each) in enumerate(runs.items())}
        class_bars(figure.subplots(), colored, "samples", names)
        return figure
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for index, (axis, (name, values)) in enumerate(zip(axes, runs.items(), strict=True)):
        _class_curve(axis, values, f"C{index}", "samples")
        axis.set_title(name)
    return figure


def exciting_images(run: Run, features: Sequence[int]) -> Figure:
    """For each feature a row of the images that excite it most, with their labels."""
    figure = Figure(figsize=(0.62 * (KEPT + 1.9), 0.65 * len(features)), layout="constrained")
    axis = figure.subplots()
    ink = matplotlib.rcParams["text.color"]
    for row, feature in enumerate(features):
        strongest = int(run.last.strongest_class[feature])
        text = f"feature {feature}\n{_short(run.class_names[strongest])}:"
        text += f" {100 * run.last.strongest_share[feature]:.0f}%"
        axis.text(-0.1, row + 0.4, text, ha="right", va="center", fontsize=7)
        for column, example in enumerate(run.exciting.of(feature)):
            if example.picture is not None:
                sides = [0.74 * side / max(example.picture.shape) for side in example.picture.shape]
                left, top = column + (0.94 - sides[1]) / 2, row + (0.74 - sides[0]) / 2
                extent = left, left + sides[1], top + sides[0], top
                axis.imshow(example.picture, extent=extent, interpolation="nearest")
            axis.text(column + 0.47, row + 0.85, _short(run.class_names[example.label], 11),
                      fontsize=5.5, ha="center", va="center",
                      color=ink if example.label == strongest else "tab:red")  # fmt: skip
    axis.set(xlim=(-1.9, KEPT), ylim=(len(features), 0), aspect="equal", title=run.name)
    axis.axis("off")
    return figure


def layer_curves(runs: Sequence[Run]) -> Figure:
    """The numbers of all features together, from the first layer to the last."""
    shown = {"mean_gini": "mean Gini", "mean_effective_classes": "effective classes",
             "mean_selectivity": "selectivity", "kl": "KL, nats",
             "live_share": "live share"}  # fmt: skip
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, len(shown))
    for axis, (field, label) in zip(axes, shown.items(), strict=True):
        for run in runs:
            values = [each.summary()[field] for each in run.layers.values()]
            axis.plot([*run.layers], values, "o-", markersize=4, label=run.name)
        axis.tick_params("x", rotation=90, labelsize="small")
        axis.set_title(label)
    axes[-1].set_ylim(0, 1.05)
    if len(runs) > 1:
        axes[0].legend(fontsize="small")
    return figure


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
