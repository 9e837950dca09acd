"""The demo: real handwritten digits, with cross-entropy alone and with the two terms added.

1,797 images of 8 x 8 pixels that scikit-learn ships; 20 of each digit to learn from, the rest to
test on. Both runs of a pair see the same images in the same order from the same initial weights.
"""

import json
import math
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # writes files, with or without a screen
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from discfused import FeatureTap, FusedDiscLoss, class_histogram
from discfused.functional import GINI_WEIGHT, KL_WEIGHT
from discfused.recipes._files import write_atomically

CLASSES = 10
PER_CLASS = 20  # training images of each digit
EPOCHS, BATCH = 100, 50
LOSSES = {"ce": (0.0, 0.0), "ce+gini+kl": (GINI_WEIGHT, KL_WEIGHT)}


class Split(NamedTuple):
    images: Tensor  # [N, 64] in [0, 1]
    digits: Tensor  # [N]
    train: Tensor  # indices
    test: Tensor


class Run(NamedTuple):
    loss: str
    seed: int
    accuracy: float  # on the test images, in percent
    gini: float  # of the features on the test images
    kl: float
    seconds: float  # of training


def split(seed: int) -> Split:
    images, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    first = [order[digits[order] == digit] for digit in range(CLASSES)]
    train = torch.cat([indices[:PER_CLASS] for indices in first])
    test = torch.cat([indices[PER_CLASS:] for indices in first])
    return Split(images.float() / 16, digits.long(), train, test)


def train(loss: str, seed: int) -> tuple[Run, Tensor]:
    """One run, and the class histogram [C, D] of its features on the test images."""
    images, digits, training, test = split(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    gini_weight, kl_weight = LOSSES[loss]
    criterion = FusedDiscLoss.attach(model, gini_weight=gini_weight, kl_weight=kl_weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    start = time.perf_counter()
    for _ in range(EPOCHS):
        for batch in training[torch.randperm(len(training))].split(BATCH):
            optimizer.zero_grad()
            criterion(model(images[batch]), digits[batch]).backward()
            optimizer.step()
    seconds = time.perf_counter() - start

    with torch.no_grad():
        logits = model(images[test])
        criterion(logits, digits[test])
        with FeatureTap(model) as tap:
            model(images[test])
            histogram = class_histogram(tap.take(), digits[test], CLASSES)
    accuracy = (logits.argmax(1) == digits[test]).double().mean().item() * 100
    _, gini, kl = (term.item() for term in criterion.terms)
    return Run(loss, seed, accuracy, gini, kl, seconds), histogram


def run(seeds: int, out: Path) -> None:
    torch.set_num_threads(1)  # layers this small lose more by sharing the work than they gain
    runs, histograms = [], {}
    print(f"{seeds} pairs of runs: {PER_CLASS * CLASSES} training images, {EPOCHS} epochs each")
    for seed in range(seeds):
        for loss in LOSSES:
            result, histogram = train(loss, seed)
            runs.append(result)
            histograms.setdefault(loss, histogram)
            print(f"  seed {seed}  {loss:10}  accuracy {result.accuracy:5.2f}%  "
                  f"gini {result.gini:.3f}  kl {result.kl:.4f}", flush=True)  # fmt: skip

    text = summary(runs)
    print(f"\n{text}\n")
    picture, rows = out / "features.png", out / "runs.json"
    write_atomically(rows, lambda path: path.write_text(_json(runs)))
    write_atomically(picture, lambda path: _draw(histograms, path))
    print(f"what every feature speaks for: {picture}\nall runs: {rows}")


def summary(runs: list[Run]) -> str:
    """A Markdown table of means over the seeds, and what the pairs say about the accuracy."""
    lines = [
        "| loss | test accuracy | gini of the features | kl | seconds a run |",
        "|---|---|---|---|---|",
    ]
    for loss in LOSSES:
        of_loss = [run for run in runs if run.loss == loss]
        accuracy, gini, kl, seconds = (
            statistics.mean(getattr(run, name) for run in of_loss)
            for name in ("accuracy", "gini", "kl", "seconds")
        )
        lines.append(f"| {loss} | {accuracy:.2f}% | {gini:.3f} | {kl:.4f} | {seconds:.2f} |")
    return "\n".join([*lines, "", _verdict(runs)])


def _verdict(runs: list[Run]) -> str:
    accuracy = {(run.loss, run.seed): run.accuracy for run in runs}
    plain, fused = LOSSES
    differences = [accuracy[fused, run.seed] - accuracy[plain, run.seed]
                   for run in runs if run.loss == plain]  # fmt: skip
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return f"accuracy: {mean:+.2f} points in one pair, which says nothing: use more --seeds"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    verdict = "undecided" if abs(mean) <= 2 * error else "a gain" if mean > 0 else "a loss"
    return (
        f"accuracy, paired over {len(differences)} seeds: {mean:+.2f} +- {error:.2f} points "
        f"(mean +- standard error): {verdict}"
    )


def _json(runs: list[Run]) -> str:
    return json.dumps([run._asdict() for run in runs], indent=1) + "\n"


def _draw(histograms: dict[str, Tensor], path: Path) -> None:
    """P [C, D] of the first seed, with the features ordered by the class they speak for most."""
    figure, axes = plt.subplots(
        len(histograms), 1, figsize=(9, 5), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (loss, H) in zip(axes[:, 0], histograms.items(), strict=True):
        P = H[:, H.sum(0) > 0]
        P = P / P.sum(0)
        strength, favourite = P.max(0)
        order = (favourite - strength).argsort()
        image = axis.imshow(P[:, order], aspect="auto", vmin=0, vmax=1, cmap="magma")
        axis.set(title=loss, ylabel="digit", xlabel="feature", yticks=range(0, CLASSES, 3))
    figure.suptitle("For which digit does a feature fire? (share of its mass, test images)")
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=120)
    plt.close(figure)
