"""The command lines of `discfused train`, `sweep`, `table` and `inspect`.

The packages of the recipes are needed only when a command runs.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from discfused._definitions import IMPURITIES
from discfused.recipes.options import DATASETS, LOSSES, MODELS, from_yaml

# Options of a recipe with their own flag. --set sets any option.
FLAGS = {
    "data_root": "data.root",
    "download": "data.download",
    "workers": "data.workers",
    "model": "model.name",
    "loss": "loss.name",
    "impurity": "loss.impurity",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "accelerator": "train.accelerator",
    "seed": "seed",
}

# Data sets without their own recipe.
RECIPE_OF = {"cifar10": "cifar100", "fashionmnist": "cifar100"}


def add_to(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the four commands. `add(name, run, text)` creates the parser of a command."""
    train = add("train", run_train, "train and test one network by a recipe")
    train.add_argument("--data", choices=DATASETS, help="data set, with its recipe as default "
                       "(cifar10 and fashionmnist: the recipe of cifar100)")  # fmt: skip
    train.add_argument("--recipe", help="YAML file, or the name of one that comes with discfused")
    train.add_argument("--model", choices=MODELS)
    train.add_argument("--loss", choices=LOSSES)
    train.add_argument("--seed", type=int, metavar="S")
    train.add_argument("--resume", action="store_true", help="continue from the checkpoint in DIR")
    _add_shared(train)

    sweep = add("sweep", run_sweep, "run all combinations of a recipe that are missing in DIR")
    sweep.add_argument("recipe", help="YAML file, or the name of one that comes with discfused")
    sweep.add_argument("--seeds", type=int, default=5, help="runs of each combination (default: 5)")
    sweep.add_argument("--first-seed", type=int, default=0, metavar="S", help="their seeds are "
                       "S, S + 1, ... (default: 0); avoid those of a search")  # fmt: skip
    sweep.add_argument("--grid", action="append", default=[], metavar="OPTION=LIST",
                       help="these combinations, such as train.lr=[0.01,0.1], and not the "
                       "recipe's")  # fmt: skip
    _add_shared(sweep)

    table = add("table", run_table, "write a table and a picture of the runs in a folder")
    table.add_argument("folder", type=Path, metavar="DIR")

    inspect = add("inspect", run_inspect, "report on the features of a run: a page, figures "
                  "and numbers")  # fmt: skip
    inspect.add_argument("--checkpoint", type=Path, required=True, metavar="RUN",
                         help="folder of a run of train or sweep")  # fmt: skip
    inspect.add_argument("--compare", type=Path, action="append", default=[], metavar="RUN",
                         help="another run, shown beside it; may be repeated")  # fmt: skip
    inspect.add_argument("--data", choices=DATASETS, help="default: the data set of the run")
    inspect.add_argument("--part", choices=("test", "validation", "train"), default="test",
                         help="part of the data (default: %(default)s)")  # fmt: skip
    inspect.add_argument("--layers", nargs="+", metavar="NAME", help="in order; default: what the "
                         "run tapped, and of ResNets the stages before it")  # fmt: skip
    inspect.add_argument("--batch-size", type=int, default=256, metavar="B")
    _add_data(inspect)
    inspect.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/report")


def _add_shared(command: argparse.ArgumentParser) -> None:
    command.add_argument("--impurity", choices=IMPURITIES, help="the term that --loss calls gini")
    _add_data(command)
    command.add_argument("--epochs", type=int, metavar="E")
    command.add_argument("--max-steps", type=int, metavar="N", help="stop early")
    command.add_argument("--batch-size", type=int, metavar="B", help="of each process")
    command.add_argument("--accelerator", choices=("auto", "cpu", "gpu", "mps"))
    command.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE",
                         help="any option of the recipe by its dotted name, such as "
                         "loss.gini_weight=0.1")  # fmt: skip
    command.add_argument("--out", type=Path, metavar="DIR", help="where results go "
                         "(default: below runs/)")  # fmt: skip


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-root", metavar="DIR", help="folder that holds the unpacked data")
    command.add_argument("--download", action="store_true", default=None, help="fetch it there")
    command.add_argument("--workers", type=int, metavar="W", help="processes that prepare batches")


def run_train(given: argparse.Namespace) -> int:
    def act() -> None:
        from discfused.recipes import records, train
        from discfused.recipes.options import parse, read

        if not (given.recipe or given.data):
            raise ValueError(f"neither --data nor --recipe is given: expected --data with one of "
                             f"{', '.join(DATASETS)}, or --recipe FILE")  # fmt: skip
        changes = _changes(given)
        if given.data:
            changes["data.name"] = given.data
        options = parse(read(Path(given.recipe or RECIPE_OF.get(given.data, given.data))), changes)
        out = given.out or Path("runs", records.name(options))
        row = train.run(options, out, resume=given.resume)
        if torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        print(f"{out}: accuracy {row['accuracy']:.2f}%, mean per-class accuracy "
              f"{row['class_accuracy']:.2f}%, gini {row['gini']:.3f}, kl {row['kl']:.4f} "
              f"after {row['steps']} steps")  # fmt: skip

    return _attempt(act)


def run_sweep(given: argparse.Namespace) -> int:
    def act() -> None:
        from discfused.recipes import sweep
        from discfused.recipes.options import read

        if given.seeds < 1:
            raise ValueError(f"--seeds is {given.seeds}, expected at least 1")
        if given.first_seed < 0:
            raise ValueError(f"--first-seed is {given.first_seed}, expected at least 0")
        path = Path(given.recipe)
        out = given.out or Path("runs", path.stem)
        recipe = read(path)
        if given.grid:
            recipe["sweep"] = _values("--grid", given.grid)
        said = sweep.run(recipe, given.seeds, out, _changes(given), given.first_seed)
        print(f"{out}: {said}\nnow: discfused table {out}")

    return _attempt(act)


def run_table(given: argparse.Namespace) -> int:
    def act() -> None:
        from discfused.recipes import table

        print(table.make(given.folder))

    return _attempt(act)


def run_inspect(given: argparse.Namespace) -> int:
    def act() -> int:
        from discfused.recipes import inspect

        if given.batch_size < 1:
            raise ValueError(f"--batch-size is {given.batch_size}, expected at least 1")
        changes = {name: value for name, value in _flags(given).items() if name.startswith("data.")}
        if given.data:
            changes["data.name"] = given.data
        folders = [given.checkpoint, *given.compare]
        options = inspect.Inspection(folders, changes, given.part, given.layers, given.batch_size)
        out = given.out or given.checkpoint / "report"
        report = inspect.inspect(options, out)
        print(f"{report}\n{out}: report.html, figures and numbers")
        return 130 if report.partial else 0

    return _attempt(act)


def _changes(given: argparse.Namespace) -> dict[str, object]:
    return _values("--set", given.set) | _flags(given)


def _flags(given: argparse.Namespace) -> dict[str, object]:
    return {FLAGS[flag]: value for flag, value in vars(given).items()
            if flag in FLAGS and value is not None}  # fmt: skip


def _values(flag: str, given: list[str]) -> dict[str, object]:
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{flag} is {text!r}, expected OPTION=VALUE")
        values[name] = from_yaml(value, f"{flag} {name}")
    return values


def _attempt(act: Callable[[], int | None]) -> int:
    """Runs a command. Errors of the user end it with one line and no traceback."""
    try:
        from discfused.recipes import records
    except ImportError as error:
        return _say_what_to_install(error)
    try:
        return act() or 0
    except ImportError as error:
        return _say_what_to_install(error)
    except records.Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except (
        ValueError, TypeError, OSError, FloatingPointError, records.InUse, records.OtherRun,
    ) as error:  # fmt: skip
        print(f"discfused: {error}", file=sys.stderr)
        return 1


def _say_what_to_install(error: ImportError) -> int:
    # Each release of torchvision needs one release of torch, so it could replace torch.
    torchvision = f"torchvision 'torch=={torch.__version__.partition('+')[0]}'"
    package = (error.name or "a package").partition(".")[0]
    what = torchvision if package == "torchvision" else "'discfused[recipes]'"
    print(f"the recipes need {package}: pip install {what}", file=sys.stderr)
    return 1
