"""Runs all combinations of a recipe's `sweep` over seeds that are still missing.

`sweep` maps dotted names of options to lists of values, for all combinations; or it is a list of
such maps.

Each run has a folder, named by its options, with its row. There is no other state. So a killed
sweep continues where it was, and several processes, also on several machines that share the folder,
can work on one sweep: each starts runs that no other process has started.
"""

import itertools
import os
from pathlib import Path
from typing import Any

from discfused.recipes import processes, records, train
from discfused.recipes.options import Options, parse


def cells(recipe: dict[str, Any], changes: dict[str, object], seed: int) -> list[Options]:
    """The options of each combination. Of combinations with equal `identity` (cross-entropy has no
    weights) only the first remains; its layers and activation are used to measure the features."""
    grids = recipe.get("sweep") or {}
    found: dict[str, Any] = {}
    for grid in grids if isinstance(grids, list) else [grids]:
        if not isinstance(grid, dict):
            raise ValueError(f"sweep is {grid!r}, expected OPTION: LIST, or a list of such maps")
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"sweep.{name} is {values!r}, expected a list of values")
        if "seed" in grid or "seed" in changes:
            raise ValueError("seed is set by --seeds and --first-seed")
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
    """Runs all missing combinations, seed by seed from `first`, so that pairs are complete early.
    Returns a summary."""
    done = already = elsewhere = failed = 0
    for seed in range(first, first + seeds):
        for options in cells(recipe, changes or {}, seed):
            folder = out / records.name(options)
            if (folder / records.RESULT).exists() and "WORLD_SIZE" not in os.environ:
                already += 1  # faster than starting the run
                continue
            try:
                if train.run_if_missing(options, folder):
                    done += 1
                else:  # another process has finished it since
                    already += 1
            except records.InUse:
                elsewhere += 1
            except records.Damaged as error:  # once its file is deleted, it can run
                failed += 1
                print(f"{folder.name}: {error}", flush=True)
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
    """Records a diverged run as failed, because it would diverge again."""
    fabric = processes.launch(options)
    if fabric.is_global_zero:
        where = records.environment(fabric.device, fabric.world_size)
        records.write_result(folder, options, {"failed": why}, where)
        (folder / records.CHECKPOINT).unlink(missing_ok=True)
