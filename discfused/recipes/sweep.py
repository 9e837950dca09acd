"""Every combination of a recipe's `sweep`, over seeds: what is missing, and nothing else.

`sweep` maps options, by their dotted names, to lists of values, all combinations of which are run;
or it is a list of such maps.

Each run has a folder of its own, named by its options, with its row in it: the folders are all that
there is to know. So a sweep that was killed goes on where it was, and several processes (of one
machine, or of several that share the folder) work on one sweep: each takes runs that nobody has.
"""

import itertools
import os
from pathlib import Path
from typing import Any

from discfused.recipes import processes, records, train
from discfused.recipes.options import Options, parse


def cells(recipe: dict[str, Any], changes: dict[str, object], seed: int) -> list[Options]:
    """One of each: combinations that come to the same (cross-entropy has no weights) are one, the
    first of them, whose layers and activation its features are measured with."""
    grids = recipe.get("sweep") or {}
    found: dict[str, Any] = {}
    for grid in grids if isinstance(grids, list) else [grids]:
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"sweep.{name} is {values!r}, expected a list of values")
        for values in itertools.product(*grid.values()):
            combination = dict(zip(grid, values, strict=True))
            options = parse(recipe, combination | changes | {"seed": seed})
            found.setdefault(records.name(options), options)
    return list(found.values())


def run(
    recipe: dict[str, Any],
    seeds: int,
    out: Path,
    changes: dict[str, object] | None = None,
    first: int = 0,
) -> str:
    """Runs what is missing of the seeds from `first` on, one after the other so that pairs are
    complete early; says what was done."""
    done = already = elsewhere = failed = 0
    for seed in range(first, first + seeds):
        for options in cells(recipe, changes or {}, seed):
            folder = out / records.name(options)
            if (folder / records.RESULT).exists() and "WORLD_SIZE" not in os.environ:
                already += 1  # without the start of a run
                continue
            try:
                if train.run_if_missing(options, folder):
                    done += 1
                else:  # another process has ended it since
                    already += 1
            except records.InUse:
                elsewhere += 1
            except FloatingPointError as error:
                failed += 1
                print(f"{folder.name}: {error}", flush=True)
                _remember(options, folder, str(error))
    text = f"{done} runs done, {already} were there"
    if elsewhere:
        text += f", {elsewhere} are under way in other processes"
    if failed:
        text += f", {failed} failed"
    return text


def _remember(options: Options, folder: Path, why: str) -> None:
    """A run that diverges would diverge again: that is its result."""
    fabric = processes.launch(options)
    if fabric.is_global_zero:
        where = records.environment(fabric.device, fabric.world_size)
        records.write_result(folder, options, {"failed": why}, where)
