"""What the runs in a folder say: a table, a picture, and a verdict for every comparison.

Runs are paired by their seed with the runs of cross-entropy that are like them in everything but
the two terms; the paired t-test and its interval are scipy's.
"""

import json
import statistics
import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # writes files, with or without a screen
import matplotlib.pyplot as plt
from scipy import stats

from discfused.recipes._files import write_atomically
from discfused.recipes.options import LOSSES
from discfused.recipes.records import read_rows

ROWS, TABLE, PICTURE = "results.jsonl", "table.md", "table.png"
LEVEL = 0.95
ALWAYS = ("data.name", "model.name", "loss.name")  # a column each; the other options share one
OF_CROSS_ENTROPY = ("loss.name", "loss.label_smoothing")  # the loss options that it has


class Cell(NamedTuple):
    """The runs that differ in their seed alone."""

    options: dict[str, object]
    rows: dict[int, dict]  # by seed, those that ended well
    failed: int


class Paired(NamedTuple):
    """Accuracy minus that of cross-entropy, in percentage points, over pairs of runs."""

    pairs: int
    mean: float
    low: float
    high: float
    p: float

    @property
    def verdict(self) -> str:
        if not self.p < 1 - LEVEL:
            return "undecided"
        return "gain" if self.mean > 0 else "loss"


def make(folder: Path) -> str:
    """Writes results.jsonl (all rows), table.md and table.png into the folder; returns the text."""
    rows = collect(folder)
    cells = group(rows)
    text = markdown(cells)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(folder / ROWS, lambda path: path.write_text(lines))
    write_atomically(folder / TABLE, lambda path: path.write_text(text + "\n"))
    write_atomically(folder / PICTURE, lambda path: draw(cells, path))
    return text


def collect(folder: Path) -> list[dict]:
    """Every run once: of two rows with the same options and seed, the one that ended last."""
    found: dict[tuple, dict] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        for row in read_rows(path):
            key = _key(row["options"]), row["seed"]
            if key not in found or found[key]["finished"] < row["finished"]:
                found[key] = row
    if not found:
        raise FileNotFoundError(f"{folder} holds no results: expected .jsonl files in it or below "
                                "it, as `discfused sweep` and `discfused train` leave")  # fmt: skip
    return [found[key] for key in sorted(found)]


def group(rows: list[dict]) -> list[Cell]:
    cells: dict[str, Cell] = {}
    for row in rows:
        cell = cells.setdefault(_key(row["options"]), Cell(row["options"], {}, 0))
        if "failed" in row:
            cells[_key(row["options"])] = cell._replace(failed=cell.failed + 1)
        else:
            cell.rows[row["seed"]] = row
    return sorted(cells.values(), key=_place)


def compare(cell: Cell, cells: list[Cell]) -> Paired | None:
    """The cell against cross-entropy; None for cross-entropy itself, or where nothing pairs."""
    wanted = _key(_baseline(cell.options))
    plain = next((other for other in cells if _key(other.options) == wanted), None)
    if plain is None or plain is cell:
        return None
    seeds = sorted(cell.rows.keys() & plain.rows.keys())
    if not seeds:
        return None
    ours, theirs = ([of.rows[seed]["accuracy"] for seed in seeds] for of in (cell, plain))
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(differences)
    if len(seeds) == 1 or len(set(differences)) == 1:  # no spread to test against
        return Paired(len(seeds), mean, float("nan"), float("nan"), float("nan"))
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(LEVEL)
    return Paired(len(seeds), mean, float(interval.low), float(interval.high), float(test.pvalue))


def markdown(cells: list[Cell]) -> str:
    lines = [
        "| data | model | loss | other options | runs | accuracy | mean per-class accuracy | gini "
        "| kl | live | accuracy - that of ce (95% interval) | p |",
        "|" + "---|" * 12,
    ]
    verdicts = []
    for cell in cells:
        paired = compare(cell, cells)
        names = [str(cell.options[name]) for name in ALWAYS]
        others = _others(cell, cells)
        runs = f"{len(cell.rows)}" + (f" + {cell.failed} failed" if cell.failed else "")
        values = [_mean(cell, "accuracy", 2), _mean(cell, "class_accuracy", 2)]
        values += [_mean(cell, "gini", 3), _mean(cell, "kl", 4), _mean(cell, "live", 3)]
        values += ["-", "-"] if paired is None else [_difference(paired), _number(paired.p, ".2g")]
        lines.append("| " + " | ".join([*names, others or "-", runs, *values]) + " |")
        if paired is not None:
            verdicts.append(_sentence(", ".join([*names, *([others] if others else [])]), paired))
    lines += ["", "Accuracies in percent on the test images, mean ± standard deviation over seeds; "
              "differences are paired by seed, with a paired t-test."]  # fmt: skip
    if len(verdicts) > 1:
        lines[-1] += (f" Where there is no effect, about one comparison in twenty is called a gain "
                      f"or a loss all the same; here are {len(verdicts)}.")  # fmt: skip
    return "\n".join([*lines, "", *verdicts]).rstrip()


def draw(cells: list[Cell], path: Path) -> None:
    """Accuracy of every run, and the paired differences with their intervals."""
    height = 1.5 + 0.35 * len(cells)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, height), sharey=True, layout="constrained"
    )
    names = []
    for y, cell in enumerate(cells):
        name = " ".join([*(str(cell.options[name]) for name in ALWAYS), _others(cell, cells)])
        names.append(textwrap.shorten(name, 60, placeholder=" ..."))
        accuracies = [row["accuracy"] for row in cell.rows.values()]
        left.plot(accuracies, [y] * len(accuracies), "o", color="tab:blue", alpha=0.4)
        if accuracies:
            left.plot(statistics.mean(accuracies), y, "|", color="black", markersize=14)
        paired = compare(cell, cells)
        if paired is not None:
            color = {"gain": "tab:green", "loss": "tab:red"}.get(paired.verdict, "tab:gray")
            right.plot(paired.mean, y, "o", color=color)
            right.plot([paired.low, paired.high], [y, y], color=color)
    right.axvline(0, color="black", linewidth=0.8)
    left.set(yticks=range(len(cells)), xlabel="test accuracy, %", title="runs and their mean")
    left.set_yticklabels(names, fontsize=8)
    left.invert_yaxis()
    right.set(xlabel="percentage points", title="paired difference to ce, 95% interval")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _place(cell: Cell) -> tuple:
    """Next to the cells that it is compared with, cross-entropy first."""
    loss = str(cell.options["loss.name"])
    return _key(_baseline(cell.options)), LOSSES.index(loss), _key(cell.options)


def _key(options: dict[str, object]) -> str:
    return json.dumps(options, sort_keys=True)


def _baseline(options: dict[str, object]) -> dict[str, object]:
    """The options of the cross-entropy runs that a cell is compared with."""
    kept = {name: value for name, value in options.items()
            if not name.startswith("loss.") or name in OF_CROSS_ENTROPY}  # fmt: skip
    return kept | {"loss.name": "ce"}


def _others(cell: Cell, cells: list[Cell]) -> str:
    """The options that tell it from other cells of the same network on the same data."""
    same = [other.options for other in cells
            if all(other.options[name] == cell.options[name] for name in ALWAYS[:2])]  # fmt: skip
    telling = [name for name in cell.options if name not in ALWAYS
               and len({json.dumps(o[name]) for o in same if name in o}) > 1]  # fmt: skip
    return " ".join(f"{name.partition('.')[2]}={_plain(cell.options[name])}" for name in telling)


def _plain(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else "null" if value is None else str(value)


def _mean(cell: Cell, name: str, digits: int) -> str:
    values = [row[name] for row in cell.rows.values()]
    if not values:
        return "-"
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def _number(value: float, how: str) -> str:
    return "-" if value != value else format(value, how)


def _difference(paired: Paired) -> str:
    if paired.low != paired.low:
        return f"{paired.mean:+.2f}"
    return f"{paired.mean:+.2f} ({paired.low:+.2f} to {paired.high:+.2f})"


def _sentence(what: str, paired: Paired) -> str:
    if paired.p != paired.p:
        return (f"- {what}: undecided, {paired.mean:+.2f} points in {paired.pairs} "
                f"pair{'s' * (paired.pairs > 1)}, too little to tell: run more seeds.")  # fmt: skip
    return (f"- {what}: {paired.verdict}, {_difference(paired)} points, p = {paired.p:.2g} "
            f"over {paired.pairs} pairs.")  # fmt: skip
