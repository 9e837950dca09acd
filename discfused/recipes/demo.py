"""The demo: real handwritten digits, with cross-entropy alone and with the terms added.

1,797 images of 8 x 8 pixels that scikit-learn ships; 20 of each digit to learn from, the rest to
test on. The three runs of a seed have the same split, the same initial weights and the same batches
in the same order, so that their difference is that of the losses. Network and schedule were chosen
by what gives cross-entropy alone a good accuracy in a second, on other seeds.
"""

import dataclasses
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy
import sklearn
import torch
from torch import nn

import discfused
from discfused import FeatureTap, FusedDiscLoss, _inputs, backends, class_histogram, disc_terms
from discfused.recipes import demo_picture, demo_report
from discfused.recipes._files import require_writable, write_atomically
from discfused.recipes._progress import Bar
from discfused.recipes.demo_data import (
    CLASSES,
    FEATURES,
    LOSSES,
    PER_CLASS,
    Measured,
    Run,
    Split,
    split,
)

BATCH = 50
LEARNING_RATE = 0.01  # at the peak of one cycle


@dataclasses.dataclass(frozen=True)
class Options:
    """Raises ValueError, TypeError, RuntimeError for what the demo cannot run with."""

    seeds: int
    epochs: int
    gini_weight: float
    kl_weight: float
    backend: str | None  # None: the fastest for CPU tensors
    out: Path

    def __post_init__(self):
        for name in ("seeds", "epochs"):
            _inputs.integer(name, getattr(self, name))
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        _inputs.non_negative("gini_weight", self.gini_weight)
        _inputs.non_negative("kl_weight", self.kl_weight)
        backends.resolve(self.device, self.backend)
        require_writable("out", self.out)

    @property
    def device(self) -> str:
        """Where the backend asked for runs. On the CPU else: the network is too small for a GPU."""
        name = self.backend or os.environ.get(backends.ENVIRONMENT_VARIABLE)
        fused = name in backends.NAMES and name != "reference"
        return backends.get(name).device_type if fused else "cpu"

    def weights(self, loss: str) -> tuple[float, float]:
        return self.gini_weight * ("gini" in loss), self.kl_weight * ("kl" in loss)


def network(seed: int) -> nn.Module:
    """Three convolutions, averaged over the image to 64 features, and one linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *_convolution(1, 16),
        *_convolution(16, 32),
        nn.MaxPool2d(2),
        *_convolution(32, FEATURES),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(FEATURES, CLASSES),
    )


def _convolution(channels: int, out: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, out, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out), nn.ReLU()


def train(
    model: nn.Module, data: Split, loss: str, seed: int, options: Options, tick: Callable[[], None]
) -> float:
    """Trains the model; the seconds it took. Calls tick after every epoch."""
    if loss == "ce":
        criterion = nn.CrossEntropyLoss()
    else:
        gini_weight, kl_weight = options.weights(loss)
        criterion = FusedDiscLoss.attach(
            model, gini_weight=gini_weight, kl_weight=kl_weight, backend=options.backend
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    steps = options.epochs * math.ceil(len(data.train) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    shuffle = torch.Generator().manual_seed(seed)

    model.train()
    start = time.perf_counter()
    for _ in range(options.epochs):
        order = torch.randperm(len(data.train), generator=shuffle)
        for batch in data.train[order].split(BATCH):
            optimizer.zero_grad()
            criterion(model(data.images[batch]), data.digits[batch]).backward()
            optimizer.step()
            schedule.step()
        tick()
    if data.images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(model: nn.Module, data: Split, backend: str | None) -> Measured:
    images, digits = data.images[data.test], data.digits[data.test]
    model.eval()
    with torch.no_grad(), FeatureTap(model) as tap:
        accuracy = (model(images).argmax(1) == digits).double().mean().item() * 100
        features = tap.take()
    gini, kl = disc_terms(features, digits, CLASSES, backend=backend)
    histogram = class_histogram(features, digits, CLASSES, backend=backend).cpu()
    dead = histogram.sum(0) <= _inputs.Options().eps * features.abs().sum(0).cpu()
    return Measured(accuracy, gini.item(), kl.item(), histogram[:, ~dead])


def run(options: Options) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small lose more by sharing the work than they gain
    try:
        runs, shown = _run_all(options)
    finally:
        torch.set_num_threads(threads)
    print(f"\n{demo_report.table(runs)}\n")
    print(demo_report.findings(runs))

    rows, picture = options.out / "discfused-demo.jsonl", options.out / "discfused-demo.png"
    write_atomically(rows, lambda path: path.write_text(_json(runs, options)))
    first = split(0)  # the one that `shown` was measured on
    digits = first.digits[first.test]
    write_atomically(picture, lambda path: demo_picture.draw(shown, digits, path))
    print(f"\nall runs: {rows}\npicture:  {picture}")


def _run_all(options: Options) -> tuple[list[Run], dict[str, Measured]]:
    """All runs, and what the picture shows: the first seed, before and after."""
    runs, shown = [], {}
    print(
        f"{' / '.join(LOSSES)}: {options.seeds} seeds, {options.epochs} epochs, "
        f"{PER_CLASS * CLASSES} training images",
        flush=True,
    )
    with Bar(options.seeds * len(LOSSES) * options.epochs) as bar:
        for seed in range(options.seeds):
            data = split(seed, options.device)
            for loss in LOSSES:
                model = network(seed).to(options.device)
                if not shown:
                    shown["untrained"] = measure(model, data, options.backend)
                tick = functools.partial(bar.advance, f"seed {seed}, {loss}")
                seconds = train(model, data, loss, seed, options, tick)
                measured = measure(model, data, options.backend)
                shown.setdefault(loss, measured)
                accuracy, gini, kl, histogram = measured
                runs.append(Run(loss, seed, accuracy, gini, kl, histogram.shape[1], seconds))
    return runs, shown


def _json(runs: list[Run], options: Options) -> str:
    """One row a run, each with all that it depended on."""
    device = options.device
    modules = discfused, torch, numpy, sklearn, matplotlib
    common = {
        "options": {
            **dataclasses.asdict(options),
            "out": str(options.out),
            "backend": backends.resolve(device, options.backend),
            "device": device,
        },
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in modules},
        },
    }
    rows = [{**_finite(run._asdict()), **common} for run in runs]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _finite(row: dict) -> dict:
    """JSON has no NaN, which a training that diverged leaves behind."""
    return {name: None if value != value else value for name, value in row.items()}
