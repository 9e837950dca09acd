"""`discfused inspect`: a report on the features of runs, on the test images of each run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from discfused import report
from discfused._files import require_writable
from discfused.inspection.measure import Run
from discfused.inspection.page import Report
from discfused.recipes import data, models, records
from discfused.recipes.options import Options, parse, read

STAGES = "layer1", "layer2", "layer3", "layer4"  # of ResNets


class Inspection(NamedTuple):
    folders: Sequence[Path]  # folders of runs
    changes: dict[str, object]  # {dotted name: value} of data.*, which replace those of the run
    part: str
    layers: Sequence[str] | None  # None: the stages of a ResNet, or the tapped layers of the run
    batch_size: int


def inspect(options: Inspection, out: Path) -> Report:
    """Writes the report into a folder. After Ctrl-C it ends with the interrupted run.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: runs with different classes, or without this part.
        records.Damaged: the weights of a run cannot be read.
    """
    recipes = [_recipe(folder, options.changes) for folder in options.folders]
    require_writable("out", out)
    runs: list[Run] = []
    for folder, recipe in zip(options.folders, recipes, strict=True):
        runs.append(_run(folder, recipe, options))
        if runs[-1].partial:
            break
    found = Report(runs)
    found.save(out)
    return found


def _recipe(folder: Path, changes: dict[str, object]) -> Options:
    path = folder / records.RECIPE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {records.RECIPE}: expected the folder of a run "
                                "of `discfused train` or `discfused sweep`")  # fmt: skip
    return parse(read(path), {"data.cache": False, **changes})  # each image is used once


def _run(folder: Path, recipe: Options, options: Inspection) -> Run:
    parts = data.load(recipe.data, recipe.seed)
    images = getattr(parts, options.part)
    if images is None:
        raise ValueError(f"part is {options.part!r}, but the run in {folder} has no held-out "
                         "images: expected test or train")  # fmt: skip
    images.transform = parts.test.transform  # without augmentation
    loader = data.loader(images, data.in_order(images, options.batch_size), recipe.data.workers)
    loss = recipe.loss
    layers = options.layers or loss.layers
    if layers is None and recipe.model.name.startswith("resnet"):
        layers = STAGES
    return report(
        _network(folder, recipe, len(parts.classes)),
        loader,
        layers,
        name=folder.resolve().name,
        class_names=parts.classes,
        capture="output" if options.layers else loss.capture,
        feature_dim=loss.feature_dim if layers else None,
        activation=loss.activation,
        prior=loss.prior,
        backend=loss.backend,
    ).runs[0]


def _network(folder: Path, recipe: Options, num_classes: int) -> nn.Module:
    """The network with the tested weights; for an unfinished run with those of its checkpoint."""
    own = dataclasses.replace(recipe.model, pretrained=False)  # no download
    network = models.build(own, num_classes, recipe.data.image_size)
    path = folder / records.WEIGHTS
    if not path.exists():
        path = folder / records.CHECKPOINT
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds neither {records.WEIGHTS} nor "
                                f"{records.CHECKPOINT}: the run has not reached its first "
                                "checkpoint")  # fmt: skip
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if path.name == records.CHECKPOINT:
            state = _tested(state)
        classes = [*state.values()][-1].shape[0]  # the classifier comes last
        if classes == num_classes:
            network.load_state_dict(state)
    except Exception as error:  # of any kind, as the damage has it
        raise records.Damaged(
            f"{path} cannot be read ({type(error).__name__}), expected weights of "
            f"{recipe.model.name!r}: it is damaged or of another run"
        ) from error
    if classes != num_classes:
        raise ValueError(f"data is {recipe.data.name!r} with {num_classes} classes, but the run in "
                         f"{folder} has {classes}: name data with as many")  # fmt: skip
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def _tested(saved: dict[str, Any]) -> dict[str, Any]:
    """The weights of a checkpoint that would be tested: the average, if there is one."""
    if saved["average"] is None:
        state: dict[str, Any] = saved["network"]
        return state
    prefix = "module."
    return {name.removeprefix(prefix): tensor for name, tensor in saved["average"].items()
            if name.startswith(prefix)}  # fmt: skip
