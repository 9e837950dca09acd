"""A table, a picture and a verdict for every comparison, from the runs in a folder.

Runs are paired by seed with runs of cross-entropy that differ only in the two terms: with label
smoothing, if they have it. Label smoothing alone is compared with plain cross-entropy.
"""

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # writes files without a display
import matplotlib.pyplot as plt

from discfused._files import write_atomically
from discfused.recipes._paired import Paired, paired
from discfused.recipes.options import LOSSES
from discfused.recipes.records import RESULT, read_rows

ROWS, TABLE, PICTURE = "results.jsonl", "table.md", "table.png"
PROCESSES = "train.processes"
ALWAYS = ("data.name", "model.name", "loss.name")  # with a column each
OF_CROSS_ENTROPY = ("loss.name", "loss.label_smoothing")  # the loss options of cross-entropy


class Cell(NamedTuple):
    """Runs that differ only in the seed."""

    options: dict[str, object]
    rows: dict[int, dict[str, Any]]  # by seed, without failed runs
    failed: int


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


def collect(folder: Path) -> list[dict[str, Any]]:
    """All runs. Of rows with the same options and seed the newest counts."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted([*folder.rglob(RESULT), *folder.rglob(ROWS)]):
        for row in read_rows(path):
            key = _key(setting(row)), row["seed"]
            if key not in found or found[key]["finished"] < row["finished"]:
                found[key] = row
    if not found:
        raise FileNotFoundError(
            f"{folder} has no results: expected {RESULT} or {ROWS} in it or below it, as "
            "`discfused sweep` and `discfused train` write them"
        )
    return [found[key] for key in sorted(found)]


def setting(row: dict[str, Any]) -> dict[str, object]:
    """The options that runs to be averaged share. The batch size is per process, so the number of
    processes is included."""
    return row["options"] | {PROCESSES: row.get("where", {}).get("processes", 1)}


def group(rows: list[dict[str, Any]]) -> list[Cell]:
    cells: dict[str, Cell] = {}
    for row in rows:
        options = setting(row)
        cell = cells.setdefault(_key(options), Cell(options, {}, 0))
        if "failed" in row:
            cells[_key(options)] = cell._replace(failed=cell.failed + 1)
        else:
            cell.rows[row["seed"]] = row
    return sorted(cells.values(), key=_place)


def compare(cell: Cell, cells: list[Cell]) -> Paired | None:
    """The cell compared with cross-entropy; None for cross-entropy, or without pairs."""
    wanted = _key(_baseline(cell.options))
    plain = next((other for other in cells if _key(other.options) == wanted), None)
    if plain is None or plain is cell:
        return None
    seeds = sorted(cell.rows.keys() & plain.rows.keys())
    if not seeds:
        return None
    return paired(*([of.rows[seed]["accuracy"] for seed in seeds] for of in (cell, plain)))


def markdown(cells: list[Cell]) -> str:
    lines = [
        "| data | model | loss | other options | runs | accuracy | mean per-class accuracy | gini "
        "| kl | live | accuracy - that of ce (95% interval) | p |",
        "|" + "---|" * 12,
    ]
    verdicts = []
    for cell in cells:
        pairs = compare(cell, cells)
        names = [str(cell.options[name]) for name in ALWAYS]
        others = _others(cell, cells)
        runs = f"{len(cell.rows)}" + (f" + {cell.failed} failed" if cell.failed else "")
        values = [_mean(cell, "accuracy", 2), _mean(cell, "class_accuracy", 2)]
        values += [_mean(cell, "gini", 3), _mean(cell, "kl", 4), _mean(cell, "live", 3)]
        against = _against(cell)
        values += (
            ["-", "-"] if pairs is None else [_difference(pairs) + against, _number(pairs.p, ".2g")]
        )
        lines.append("| " + " | ".join([*names, others or "-", runs, *values]) + " |")
        if pairs is not None:
            sentence = _sentence(", ".join([*names, *([others] if others else [])]), pairs, against)
            if cell.failed:
                sentence += f" {cell.failed} more failed and are not in this."
            verdicts.append(sentence)
    lines += ["", "Accuracies in percent on the test images, mean +- standard deviation over "
              "seeds; differences are paired by seed, with a paired t-test."]  # fmt: skip
    made = {(row["where"].get("torch"), row["where"].get("threads"))
            for cell in cells for row in cell.rows.values() if "where" in row}  # fmt: skip
    if len(made) > 1:
        lines[-1] += (f" The runs were made with {len(made)} combinations of PyTorch's version and "
                      "number of threads, which change single accuracies by points.")  # fmt: skip
    if len(verdicts) > 1:
        lines[-1] += (f" Where there is no effect, about one comparison in twenty is called a gain "
                      f"or a loss all the same; here are {len(verdicts)}.")  # fmt: skip
    return "\n".join([*lines, "", *verdicts]).rstrip()


def draw(cells: list[Cell], path: Path) -> None:
    """Accuracy of every run, and the paired differences with their intervals."""
    names = []
    for cell in cells:
        name = " ".join([*(str(cell.options[name]) for name in ALWAYS), _others(cell, cells)])
        names.append(textwrap.fill(name, 60))
    lines = max((name.count("\n") + 1 for name in names), default=1)
    height = 1.5 + (0.2 + 0.15 * lines) * len(cells)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, height), sharey=True, layout="constrained"
    )
    for y, cell in enumerate(cells):
        accuracies = [row["accuracy"] for row in cell.rows.values()]
        left.plot(accuracies, [y] * len(accuracies), "o", color="tab:blue", alpha=0.4)
        if accuracies:
            left.plot(statistics.mean(accuracies), y, "|", color="black", markersize=14)
        pairs = compare(cell, cells)
        if pairs is not None:
            color = {"gain": "tab:green", "loss": "tab:red"}.get(pairs.verdict, "tab:gray")
            right.plot(pairs.mean, y, "o", color=color)
            right.plot([pairs.low, pairs.high], [y, y], color=color)
    right.axvline(0, color="black", linewidth=0.8)
    left.set(yticks=range(len(cells)), xlabel="test accuracy, %", title="runs and their mean")
    left.set_yticklabels(names, fontsize=8)
    left.invert_yaxis()
    right.set(xlabel="percentage points, 95% interval", title="paired difference (see the table)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _place(cell: Cell) -> tuple[Any, ...]:
    """The sort key: next to the cells that it is compared with, cross-entropy first."""
    loss = str(cell.options["loss.name"])
    return _key(_baseline(cell.options)), LOSSES.index(loss), _key(cell.options)


def _key(options: dict[str, object]) -> str:
    return json.dumps(options, sort_keys=True)


def _baseline(options: dict[str, object]) -> dict[str, object]:
    """The options of the cross-entropy runs that a cell is compared with."""
    kept = {name: value for name, value in options.items()
            if not name.startswith("loss.") or name in OF_CROSS_ENTROPY}  # fmt: skip
    if options["loss.name"] == "ce":  # label smoothing is an alternative to the terms
        kept["loss.label_smoothing"] = 0.0
    return kept | {"loss.name": "ce"}


def _against(cell: Cell) -> str:
    """What a cell is compared with, if it is not plain cross-entropy."""
    smoothing = _baseline(cell.options).get("loss.label_smoothing")
    return f" against ce with label_smoothing={smoothing}" if smoothing else ""


def _others(cell: Cell, cells: list[Cell]) -> str:
    """The options that differ from other cells of the same network on the same data."""
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
    return f"{text} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def _number(value: float, how: str) -> str:
    return "-" if value != value else format(value, how)


def _difference(pairs: Paired) -> str:
    if pairs.low != pairs.low:
        return f"{pairs.mean:+.2f}"
    return f"{pairs.mean:+.2f} ({pairs.low:+.2f} to {pairs.high:+.2f})"


def _sentence(what: str, pairs: Paired, against: str) -> str:
    if pairs.p != pairs.p:
        return (f"- {what}: undecided, {pairs.mean:+.2f} points{against} in {pairs.pairs} "
                f"pair{'s' * (pairs.pairs > 1)}, too little to tell: run more seeds.")  # fmt: skip
    return (f"- {what}: {pairs.verdict}, {_difference(pairs)} points{against}, p = {pairs.p:.2g} "
            f"over {pairs.pairs} pairs.")  # fmt: skip
