"""Small data sets in the original formats, and recipes that run on them in a second.

Import it before the packages that the recipes need: it skips the tests if they are missing.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

pytest.importorskip(
    "discfused.recipes._torchvision", reason="the recipes need torchvision, which no extra brings"
)
for package in ("lightning", "torchmetrics", "transformers", "sklearn", "scipy", "yaml"):
    pytest.importorskip(package, reason="the recipes need the packages of their extra")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.datasets import cifar  # noqa: E402

from discfused.recipes import splits  # noqa: E402
from discfused.recipes.commands import RECIPE_OF  # noqa: E402
from discfused.recipes.options import (  # noqa: E402
    DATASETS,
    LOSSES,
    MODELS,
    Options,
    parse,
    read,
)

CLASSES = ("BACKGROUND_Google", "accordion", "wild_cat", "yin_yang")
TRAIN, TEST = 6, 3

SMALL = {
    "model.width": 0.125, "model.stem": "small", "data.workers": 0, "train.epochs": 1,
    "train.accelerator": "cpu", "train.precision": "32-true", "train.log_every": 1,
    "loss.start": 0.0,
}  # fmt: skip
OF_DATA = {
    "digits": {"data.train_per_class": 2, "train.batch_size": 10},
    "digit-pairs": {"data.train_per_class": 1, "train.batch_size": 25},
    "caltech101": {
        "data.resize": 20, "data.image_size": 16, "train.batch_size": 6,
        "data.samples_per_class": 2,
    },
    "cifar100": {"train.batch_size": 8, "data.samples_per_class": 2, "data.validation": 4},
}  # fmt: skip

__all__ = ["CLASSES", "DATASETS", "LOSSES", "MODELS", "TEST", "TRAIN", "Datasets", "run_options"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread, because small batches are slower on several. For modules that import it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(*arguments: str, **keywords) -> subprocess.Popen:
    """A Python process."""
    return subprocess.Popen(
        [sys.executable, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **keywords,
    )  # fmt: skip


class Datasets:
    """Folders with a few images of every data set that must be downloaded."""

    def __init__(self, folder: Path):
        self.root, self.split = folder / "root", folder / "split.json"
        caltech101(self.root, self.split)
        cifar100(self.root)
        cifar10(self.root)
        fashionmnist(self.root)

    def options(self, data: str = "digits", **changes) -> Options:
        return run_options(data, {
            "data.root": str(self.root), "data.split": str(self.split), **changes
        })  # fmt: skip


def run_options(data: str = "digits", changes: dict | None = None) -> Options:
    recipe = RECIPE_OF.get(data, data)
    given = {**SMALL, **OF_DATA[recipe], "data.name": data, **(changes or {})}
    return parse(read(Path(recipe)), given)


def caltech101(root: Path, split: Path) -> None:
    """JPEG files of several sizes. Each class has its own colour; one is grey."""
    random = numpy.random.default_rng(0)
    files = [f"image_{number:04d}.jpg" for number in range(1, TRAIN + TEST + 1)]
    for label, name in enumerate(CLASSES):
        folder = root / "caltech101" / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for index, file in enumerate(files):
            pixels = random.integers(0, 60, (24 + index, 30 - index, 3)) + 60 * label
            image = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
            (image.convert("L") if index == 0 else image).save(folder / file)
    parts = (dict.fromkeys(CLASSES, chosen) for chosen in (files[:TRAIN], files[TRAIN:]))
    splits.save(splits.Split(*parts), split)


def cifar100(root: Path) -> None:
    """Pickles with the keys and types of https://www.cs.toronto.edu/~kriz/cifar.html."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    random = numpy.random.default_rng(0)
    for part, count in (("train", 24), ("test", 12)):
        labels = [(7 * index) % 4 for index in range(count)]
        entry = {
            "filenames": [f"image_s_{index:06d}.png" for index in range(count)],
            "batch_label": "training batch 1 of 1",
            "fine_labels": labels,
            "coarse_labels": [label // 5 for label in labels],
            "data": random.integers(0, 256, (count, 3072)).astype("uint8"),
        }
        (folder / part).write_bytes(pickle.dumps(entry, protocol=2))
    meta = {
        "fine_label_names": [f"fine {label}" for label in range(100)],
        "coarse_label_names": [f"coarse {label}" for label in range(20)],
    }
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))


def cifar10(root: Path) -> None:
    """Five training pickles and one test pickle, like those of CIFAR-100."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = numpy.random.default_rng(0)
    for part in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (8, 3072)).astype("uint8")
        entry = {"labels": [(3 * index) % 10 for index in range(8)], "data": pixels}
        (folder / part).write_bytes(pickle.dumps(entry, protocol=2))
    meta = {"label_names": [f"class {label}" for label in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def fashionmnist(root: Path) -> None:
    """The files of http://yann.lecun.com/exdb/mnist: numbers of 32 bits, and bytes."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    random = numpy.random.default_rng(0)
    for part, count in (("train", 24), ("t10k", 12)):
        pixels = random.integers(0, 256, (count, 28, 28)).astype("uint8")
        labels = numpy.array([(3 * index) % 10 for index in range(count)], "uint8")
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = numpy.array([0x800 + array.ndim, *array.shape], ">u4")
            (folder / f"{part}-{kind}-ubyte").write_bytes(head.tobytes() + array.tobytes())


def accept_small_files(monkeypatch) -> None:
    """Skips torchvision's checksums, which are those of the original files."""
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: os.path.isfile(path))
