"""The demo: handwritten digits, with cross-entropy alone and with the terms.

The data are 1,797 images of 8 x 8 pixels from scikit-learn: a few of each digit for training, the
others for the test. All runs of a seed have the same split, initial weights and order of batches,
so they differ only in the loss. The networks are trained in two ways: as the paper's authors train,
and with the learning rate and weight decay that are best for cross-entropy on other seeds
(docs/recipes/digits-60-tuning).
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import sklearn
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import discfused
from discfused import FeatureTap, FusedDiscLoss, _inputs, backends, disc_terms, report
from discfused._definitions import IMPURITIES
from discfused._files import require_writable, write_atomically
from discfused.inspection.measure import Run as Inspected
from discfused.inspection.page import Report
from discfused.recipes import demo_picture, demo_report
from discfused.recipes.demo_data import (
    CLASSES,
    NAMES,
    NETWORKS,
    SETUPS,
    SHOWN,
    Measured,
    Run,
    Setup,
    Split,
    split,
)

BATCH = 50
START = 0.04  # the terms start after this part of the steps: the paper's epoch 10 of 250
DROPS = (0.24, 0.48, 0.64, 0.8)  # "paper": times 0.2 at epochs 60, 120, 160, 200 of 250
WARMUP = 0.1  # "tuned": the part of the steps with a rising rate
PICTURE = "discfused-demo.png"


@dataclasses.dataclass(frozen=True)
class Options:
    """Raises ValueError, TypeError or RuntimeError for values that the demo cannot use."""

    seeds: int
    images: int  # of each digit
    epochs: int
    gini_weight: float
    kl_weight: float
    impurity: str
    backend: str | None  # None: the fastest for the CPU
    out: Path
    json: Path | None

    def __post_init__(self) -> None:
        for name, most in (("seeds", None), ("images", 100), ("epochs", None)):
            value = _inputs.integer(name, getattr(self, name))
            if value < 1 or (most and value > most):
                between = f"from 1 to {most}" if most else "at least 1"
                raise ValueError(f"{name} is {value}, expected {between}")
        _inputs.non_negative("gini_weight", self.gini_weight)
        _inputs.non_negative("kl_weight", self.kl_weight)
        _inputs.one_of("impurity", self.impurity, IMPURITIES)
        backends.resolve(self.device, self.backend)
        require_writable("out", self.out)
        if self.json is not None:
            require_writable("json", self.json.parent)

    @property
    def device(self) -> str:
        """The device of the requested backend, else the CPU, because the networks are small."""
        name = self.backend or os.environ.get(backends.ENVIRONMENT_VARIABLE)
        if name not in backends.NAMES or name == "reference":
            return "cpu"
        return backends.get(name).device_type


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model: Any = NETWORKS[name]()
    return model.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU


def train(model: nn.Module, data: Split, setup: Setup, seed: int, options: Options) -> float:
    """Trains the model. Returns the time in seconds."""
    criterion: Any = nn.CrossEntropyLoss(label_smoothing=setup.smoothing)
    if setup.terms:
        criterion = FusedDiscLoss.attach(model, impurity=options.impurity, backend=options.backend)
    batch_size = min(BATCH, len(data.train))
    per_epoch = len(data.train) // batch_size
    steps = per_epoch * options.epochs
    optimizer, schedule = _optimizer(model, setup.training, steps)
    shuffle = torch.Generator().manual_seed(seed)

    model.train()
    start = time.perf_counter()
    for step in range(steps):
        if step % per_epoch == 0:
            order = data.train[torch.randperm(len(data.train), generator=shuffle)]
        if setup.terms:
            on = step >= START * steps
            criterion.gini_weight = on * options.gini_weight * ("gini" in setup.loss)
            criterion.kl_weight = on * options.kl_weight * ("kl" in setup.loss)
        batch = order[step % per_epoch * batch_size :][:batch_size]
        optimizer.zero_grad()
        criterion(model(data.images[batch]), data.digits[batch]).backward()
        if setup.training == "tuned":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if data.images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _optimizer(
    model: nn.Module, training: str, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    if training == "paper":
        sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=True)
        return sgd, LambdaLR(sgd, lambda step: 0.2 ** sum(step >= drop * steps for drop in DROPS))
    warmup = math.ceil(WARMUP * steps)

    def share(step: int) -> float:
        """The factor of the learning rate: a linear rise, then half a cosine."""
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2

    optimizer = torch.optim.AdamW(model.parameters(), 0.03, weight_decay=1.0, fused=True)
    return optimizer, LambdaLR(optimizer, share)


def measure(model: nn.Module, data: Split, backend: str | None) -> Measured:
    images, digits = data.images[data.test], data.digits[data.test]
    model.eval()
    with torch.no_grad(), FeatureTap(model) as tap:
        logits = model(images)
        features = tap.take(logits)
    accuracy = (logits.argmax(1) == digits).double().mean().item() * 100
    gini, kl = disc_terms(features, digits, CLASSES, backend=backend)
    return Measured(accuracy, gini.item(), kl.item())


def inspect(model: nn.Module, data: Split, loss: str, backend: str | None) -> Inspected:
    """The data of a network for the picture and the report."""
    batch = data.images[data.test], data.digits[data.test]
    return report(model, [batch], name=NAMES[loss], backend=backend).runs[0]


def run_seed(seed: int, options: Options) -> tuple[list[Run], dict[str, demo_picture.Shown]]:
    """All runs of a seed; for the first seed also the data for the picture and the report."""
    torch.set_num_threads(1)  # several threads are slower for such small layers
    data = split(seed, options.images, options.device)
    runs: list[Run] = []
    shown: dict[str, demo_picture.Shown] = {}
    if seed == 0:
        model = network("resnet", seed).to(options.device)
        measured = measure(model, data, options.backend)
        shown["untrained"] = measured.accuracy, inspect(model, data, "untrained", options.backend)
    for setup in SETUPS:
        model = network(setup.network, seed).to(options.device)
        seconds = train(model, data, setup, seed, options)
        measured = measure(model, data, options.backend)
        runs.append(Run(setup, seed, *measured, round(seconds, 3)))
        if seed == 0 and setup in SHOWN:
            looked_at = inspect(model, data, setup.loss, options.backend)
            shown[setup.loss] = measured.accuracy, looked_at
    return runs, shown


def run(options: Options) -> None:
    print(
        f"{options.seeds} seeds of {len(SETUPS)} runs: {options.images * CLASSES} training images, "
        f"{options.epochs} epochs",
        flush=True,
    )
    threads = torch.get_num_threads()
    runs: list[Run] = []
    shown: dict[str, demo_picture.Shown] = {}
    try:
        for seed, (of_seed, of_first) in enumerate(_each_seed(options, threads)):
            runs, shown = runs + of_seed, shown | of_first
            ce, both = (
                next(run.accuracy for run in of_seed if run.setup == setup) for setup in SHOWN
            )
            print(f"seed {seed}: {ce:.1f}% with {SHOWN[0].loss}, {both:.1f}% with {SHOWN[1].loss}",
                  flush=True)  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    print(f"\n{demo_report.report(runs)}\n")

    picture = options.out / PICTURE
    write_atomically(picture, lambda path: demo_picture.draw(shown, path))
    print(f"picture: {picture}")
    page = Report([shown[loss][1] for loss in NAMES]).save(options.out)
    print(f"what the features learned: {page}")
    if options.json is not None:
        write_atomically(options.json, lambda path: path.write_text(_document(runs, options)))
        print(f"all runs: {options.json}")


def _each_seed(options: Options, processes: int) -> Iterator[tuple[list[Run], dict[str, Any]]]:
    """Runs as many seeds in parallel as PyTorch would use threads."""
    seeds, given = range(options.seeds), [options] * options.seeds
    with contextlib.ExitStack() as pool:
        each: Any = map
        if processes > 1 < options.seeds:
            each = pool.enter_context(
                ProcessPoolExecutor(min(processes, options.seeds), get_context("spawn"))
            ).map
        yield from each(run_seed, seeds, given)


def _document(runs: list[Run], options: Options) -> str:
    """All runs, with versions and options."""
    chosen = dataclasses.asdict(options) | {
        "backend": backends.resolve(options.device, options.backend),
        "device": options.device,
    }
    del chosen["out"], chosen["json"]
    modules = discfused, torch, numpy, sklearn, matplotlib
    versions = {module.__name__: module.__version__ for module in modules}
    rows = [_row(run) for run in runs]
    python = {"python": platform.python_version()}
    return json.dumps({"options": chosen, "versions": python | versions, "runs": rows}) + "\n"


def _row(run: Run) -> dict[str, Any]:
    """The run as JSON types. NaN of a diverged training becomes None."""
    row = run.setup._asdict() | run._asdict()
    del row["setup"]
    return {name: None if value != value else value for name, value in row.items()}
