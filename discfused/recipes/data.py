"""The data sets of the recipes: decoded and augmented images with labels, in batches.

| name | source | training | test |
|---|---|---|---|
| caltech101 | torchvision | 30 images of each class, by the committed split file | up to 50 |
| cifar100, cifar10, fashionmnist | torchvision | its training images | its test images |
| digits | scikit-learn, bundled | `train_per_class` of each digit, chosen by the seed | the rest |
| digit-pairs | two digits side by side: 100 classes | `train_per_class` of each | 20 of each |

`validation` training images can be held out to select an epoch.
"""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from discfused.recipes import splits
from discfused.recipes._torchvision import datasets, transforms
from discfused.recipes.options import Data
from discfused.recipes.sampler import Batches

_Part = tuple[Any, Tensor]  # decodes an image by its number; labels
_Read = tuple[Any, ...]  # classes, training _Part, test _Part

BACKGROUND = "BACKGROUND_Google"
CACHE_BYTES = 2 << 30  # limit for keeping the images of a part in memory
BUNDLED = ("digits", "digit-pairs")  # train_per_class says how they are split
DIGITS_PER_CLASS = 100  # for training if train_per_class is null; each digit has at least 174
PAIRS_PER_CLASS = 4, 20  # per class: the default for training, and for the test
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pretrained networks
LAYOUT = {
    "caltech101": "caltech101/101_ObjectCategories/accordion/image_0001.jpg and so on",
    "cifar100": "cifar-100-python/train, cifar-100-python/test and cifar-100-python/meta",
    "cifar10": "cifar-10-batches-py/data_batch_1 and so on",
    "fashionmnist": "FashionMNIST/raw/train-images-idx3-ubyte and so on",
}
OF_TORCHVISION = {
    "cifar100": datasets.CIFAR100,
    "cifar10": datasets.CIFAR10,
    "fashionmnist": datasets.FashionMNIST,
}


class Images(Dataset[Any]):
    """(uint8 image [3, h, w], class) by index, augmented by (epoch, index).

    The augmentation of a sample depends only on the seed, the epoch and the index, not on the
    process or the order.
    """

    def __init__(
        self,
        decode: Callable[[int], Tensor],
        labels: Tensor,
        transform: Callable[[Tensor], Tensor],
        seed: int,
        cache: bool | None,
    ):
        self.decode, self.labels, self.transform, self.seed = decode, labels, transform, seed
        self.kept: list[Tensor] | None = None
        if cache is None:
            cache = decode(0).numel() * len(labels) <= CACHE_BYTES
        if cache:
            self.kept = [decode(index) for index in range(len(labels))]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image = self.decode(index) if self.kept is None else self.kept[index]
        # The transforms use the global generator: seed it, and restore it afterwards.
        generator = torch.default_generator
        before = generator.get_state()
        drawn_by = (self.seed * 1_000_003 + epoch) * 1_000_003 + index
        generator.manual_seed(drawn_by % 2**63)
        try:
            return self.transform(image), int(self.labels[index])
        finally:
            generator.set_state(before)


# Decoders are classes and methods, not closures, because workers that are not forked receive the
# data set through pickle.


class _Chosen(NamedTuple):
    decode: Callable[[int], Tensor]
    indices: Tensor

    def __call__(self, index: int) -> Tensor:
        return self.decode(int(self.indices[index]))


class _Files(NamedTuple):
    paths: list[Path]
    resize: Callable[[Tensor], Tensor]

    def __call__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.resize(transforms.functional.pil_to_tensor(image.convert("RGB")))


class Parts(NamedTuple):
    train: Images
    validation: Images | None
    test: Images
    classes: Sequence[str]


def load(options: Data, seed: int) -> Parts:
    """Raises FileNotFoundError with the expected layout if the files are missing."""
    own = {"caltech101": _caltech101, "digits": _digits, "digit-pairs": _digit_pairs}
    read = own.get(options.name, _arrays)
    classes, (decode_train, train_labels), test = read(options, seed)

    def images(part: _Part, augment: str) -> Images:
        transform = _transform(augment, options.image_size, options.normalize)
        return Images(*part, transform, seed, options.cache)

    def chosen(indices: Tensor) -> _Part:
        return _Chosen(decode_train, indices), train_labels[indices]

    learned, held_out = torch.arange(len(train_labels)), None
    if options.validation is not None:
        held_out, learned = _hold_out(len(learned), options.validation, options.validation_seed)
    if options.train_per_class is not None and options.name not in BUNDLED:
        learned = learned[_choose(train_labels[learned], options.train_per_class, seed)[0]]
    return Parts(
        images(chosen(learned), options.augment),
        None if held_out is None else images(chosen(held_out), "none"),
        images(test, "none"),
        classes,
    )


def loader(images: Images, batches: Batches | Sequence[Any], workers: int) -> DataLoader[Any]:
    """Batches (images [N, 3, s, s] float32, classes [N]) of the keys that `batches` lists."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=_ignore_ctrl_c,
        pin_memory=torch.cuda.is_available(),
    )


def _ignore_ctrl_c(worker: int) -> None:
    """The training process handles Ctrl-C, and needs its workers until then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_order(images: Images, batch_size: int) -> list[list[tuple[int, int]]]:
    """The keys of all images in order, for a test."""
    return [
        [(0, int(index)) for index in part] for part in torch.arange(len(images)).split(batch_size)
    ]


def _transform(augment: str, size: int, normalize: bool) -> Callable[[Tensor], Tensor]:
    geometry = {
        "none": [transforms.CenterCrop(size)],
        "crop": [transforms.RandomCrop(size, padding=size // 8)],
        "crop+flip": [
            transforms.RandomCrop(size, padding=size // 8),
            transforms.RandomHorizontalFlip(),
        ],
        "resized-crop+flip": [
            transforms.RandomResizedCrop(size, scale=(0.35, 1), antialias=True),
            transforms.RandomHorizontalFlip(),
        ],
    }[augment]
    numbers = [transforms.ToDtype(torch.float32, scale=True)]
    if normalize:
        numbers.append(transforms.Normalize(MEAN, STD))
    return transforms.Compose([*geometry, *numbers])


def _hold_out(images: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(held out, rest): indices in order."""
    if count >= images:
        raise ValueError(f"data.validation is {count}, expected fewer than the {images} images to "
                         "learn from")  # fmt: skip
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values, order[count:].sort().values


def _choose(labels: Tensor, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """(chosen, rest): indices, `per_class` of each class and the others."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    groups = [order[labels[order] == c] for c in labels.unique()]
    if smallest := min((len(group) for group in groups if len(group) < per_class), default=None):
        raise ValueError(f"data.train_per_class is {per_class}, expected at most {smallest}, which "
                         "is the number of images of one class")  # fmt: skip
    chosen, rest = ([group[part] for group in groups]
                    for part in (slice(per_class), slice(per_class, None)))  # fmt: skip
    return torch.cat(chosen).sort().values, torch.cat(rest).sort().values


def _gray_digits() -> tuple[Tensor, Tensor]:
    """[1797, 1, 8, 8] uint8, and their labels."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    return (pixels.view(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8), labels


def _digits(options: Data, seed: int) -> _Read:
    gray, labels = _gray_digits()
    larger = max(1, options.image_size // 8)
    images = gray.repeat_interleave(larger, 2).repeat_interleave(larger, 3).expand(-1, 3, -1, -1)
    parts = _choose(labels, options.train_per_class or DIGITS_PER_CLASS, seed)
    return [str(digit) for digit in range(10)], *(
        (images[part].__getitem__, labels[part]) for part in parts
    )


def _digit_pairs(options: Data, seed: int) -> _Read:
    """Training and test pairs use different digits. A digit may be in several pairs of its part."""
    gray, digits = _gray_digits()
    generator = torch.Generator().manual_seed(seed)
    counts = options.train_per_class or PAIRS_PER_CLASS[0], PAIRS_PER_CLASS[1]
    parts = []
    for part, count in zip(_choose(digits, DIGITS_PER_CLASS, seed), counts, strict=True):
        labels = torch.arange(100).repeat_interleave(count)
        sides = []
        for wanted in (labels // 10, labels % 10):
            order = part[torch.rand(len(labels), len(part), generator=generator).argsort(1)]
            first = (digits[order] == wanted[:, None]).int().argmax(1, keepdim=True)
            sides.append(gray[order.gather(1, first).squeeze(1)])
        images = torch.cat(sides, 3).expand(-1, 3, -1, -1)
        parts.append((images.__getitem__, labels))
    return [f"{pair:02}" for pair in range(100)], *parts


def _arrays(options: Data, seed: int) -> _Read:
    """The parts of a data set that torchvision holds as one array."""
    source = OF_TORCHVISION[options.name]
    parts = [_get(options, source, train=train) for train in (True, False)]

    def decoder(part: Any) -> _Part:
        images = torch.as_tensor(part.data)
        if images.dim() == 3:  # gray
            images = images.unsqueeze(-1).expand(-1, -1, -1, 3)
        return images.permute(0, 3, 1, 2).__getitem__, torch.as_tensor(part.targets)

    return parts[0].classes, *map(decoder, parts)


def _caltech101(options: Data, seed: int) -> _Read:
    _get(options, datasets.Caltech101)
    folder = Path(options.root or "", "caltech101", "101_ObjectCategories")
    split = splits.load(Path(options.split) if options.split else splits.COMMITTED)
    classes = [name for name in split.train if options.background or name != BACKGROUND]
    resize = transforms.Resize(options.resize, antialias=True)

    def decoder(part: dict[str, list[str]]) -> _Part:
        files = [folder / name / file for name in classes for file in part[name]]
        labels = [label for label, name in enumerate(classes) for _ in part[name]]
        if absent := [str(file) for file in files if not file.exists()]:
            raise FileNotFoundError(
                f"{len(absent)} images of the split are missing, for example {absent[0]}: expected "
                f"all of Caltech-101 below {folder}"
            )
        return _Files(files, resize), torch.tensor(labels)

    return classes, decoder(split.train), decoder(split.test)


def _get(options: Data, source: Any, **keywords: Any) -> Any:
    """torchvision's data set, downloaded if requested. Raises an error that says what to do."""
    if options.root is None:
        raise FileNotFoundError(
            f"data.root is null, expected the folder of {options.name}: pass --data-root DIR with "
            f"DIR/{LAYOUT[options.name]}, or --download as well to have torchvision fetch it"
        )
    try:
        return source(options.root, download=options.download, **keywords)
    except Exception as error:  # a download can raise many exceptions
        raise FileNotFoundError(
            f"{options.name} could not be read from {str(options.root)!r} ({error}): expected "
            f"{options.root}/{LAYOUT[options.name]}. Unpack the data set there, or pass --download"
        ) from error
