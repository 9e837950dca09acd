"""The options of a recipe and their checks.

A recipe is a YAML file with these sections and a value for every option, so that it describes a run
completely; `discfused/recipes/*.yaml` are examples. The section `sweep` lists combinations: see
`sweep.py`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from discfused._definitions import ACTIVATIONS, IMPURITIES

DATASETS = ("caltech101", "cifar100", "cifar10", "fashionmnist", "digits", "digit-pairs")
MODELS = ("resnet17", "resnet18", "resnet50", "cvt13")
LOSSES = ("ce", "ce+gini", "ce+kl", "ce+gini+kl")
AUGMENTATIONS = ("none", "crop", "crop+flip", "resized-crop+flip")
CHOICES = {
    "data.name": DATASETS,
    "data.augment": AUGMENTATIONS,
    "model.name": MODELS,
    "model.stem": ("auto", "small", "large"),
    "loss.name": LOSSES,
    "loss.activation": ACTIVATIONS,
    "loss.impurity": IMPURITIES,
    "loss.prior": ("batch", "uniform"),
    "loss.capture": ("output", "input"),
    "train.optimizer": ("sgd", "adamw"),
    "train.lr_schedule": ("constant", "cosine", "one-cycle", "step"),
    "train.select": ("last", "best"),
    "train.precision": ("32-true", "16-mixed", "bf16-mixed"),
    "train.accelerator": ("auto", "cpu", "gpu", "mps"),
}
# Lowest valid values (the type check covers None).
AT_LEAST = {
    "data.validation": 1, "data.validation_seed": 0, "data.train_per_class": 1, "data.resize": 1,
    "data.image_size": 1, "data.samples_per_class": 1, "data.workers": 0, "model.dropout": 0,
    "loss.gini_weight": 0, "loss.kl_weight": 0, "loss.start": 0, "loss.ramp": 0,
    "loss.label_smoothing": 0, "train.epochs": 1, "train.max_steps": 1, "train.batch_size": 2,
    "train.lr": 0, "train.weight_decay": 0, "train.momentum": 0, "train.lr_warmup": 0,
    "train.lr_factor": 0, "train.clip": 0, "train.ema": 0, "train.log_every": 1,
    "train.eval_every": 0, "train.save_every": 1, "seed": 0,
}  # fmt: skip
AT_MOST = {"model.width": 4, "model.dropout": 0.99, "loss.label_smoothing": 1, "loss.ramp": 1,
           "train.lr_warmup": 1, "train.momentum": 1, "train.ema": 1,
           "data.validation_seed": 2**63 - 1, "seed": 2**63 - 1}  # fmt: skip


def no_effect(**keywords: Any) -> Any:
    """An option that does not change the results of a run."""
    return field(metadata={"no_effect": True}, **keywords)


@dataclass(frozen=True, kw_only=True)
class Data:
    name: str
    root: str | None = no_effect()  # folder with caltech101/, cifar-100-python/ ...
    download: bool = no_effect()  # into root, if it is missing
    split: str | None  # caltech101: a split file in place of the committed one
    background: bool  # caltech101: BACKGROUND_Google is a class, too
    validation: int | None  # number of held-out training images
    validation_seed: int  # selects them; independent of the seed of the run
    train_per_class: int | None  # training images per class, chosen by the seed; null: all
    resize: int  # caltech101: shorter side in pixels before cropping; this size is cached
    image_size: int  # side of the model's input in pixels
    augment: str
    normalize: bool  # with mean and standard deviation of ImageNet; false: values from 0 to 1
    samples_per_class: int | None  # of a class in class-balanced batches; null: shuffled batches
    cache: bool | None = no_effect()  # keep decoded images; null: if they need < 2 GiB
    workers: int = no_effect()  # processes that prepare batches


@dataclass(frozen=True)
class Model:
    name: str
    width: float  # of all layers, as a fraction of the original
    stem: str  # small: 3 x 3 without pooling; large: the original; auto: small up to 32 pixels
    dropout: float  # ResNets: of the input of the linear layer
    pretrained: bool  # start from the weights of torchvision or the hub (a download)


@dataclass(frozen=True)
class Loss:
    name: str
    gini_weight: float
    kl_weight: float
    start: float  # of the terms: a fraction of the training, or, from 1 on, a number of epochs
    ramp: float  # fraction of the training over which the weights rise; 0: at once
    layers: list[str] | None  # names of layers to tap; null: the input of the last linear layer
    capture: str  # output or input of these layers
    feature_dim: int  # the dimension of their output that counts features
    activation: str
    impurity: str
    prior: str
    label_smoothing: float  # in cross-entropy
    backend: str | None = no_effect()


@dataclass(frozen=True, kw_only=True)
class Train:
    epochs: int
    max_steps: int | None  # upper limit of the number of steps
    batch_size: int  # per process
    optimizer: str
    lr: float
    momentum: float  # sgd
    weight_decay: float
    lr_schedule: str
    lr_warmup: float  # cosine, one-cycle: fraction of the steps with a rising rate
    lr_steps: list[int] | None  # step: epochs at which the rate is multiplied by lr_factor
    lr_factor: float
    clip: float | None  # maximum norm of the gradient
    ema: float | None  # test an average of the weights with this decay; null: the weights
    select: str  # test the network of the last epoch, or of the best epoch on held-out images
    precision: str
    accelerator: str = no_effect()
    log_every: int = no_effect()  # steps
    eval_every: int  # epochs, on held-out or test images; 0: only at the end
    save_every: int = no_effect()  # steps


@dataclass(frozen=True)
class Options:
    data: Data
    model: Model
    loss: Loss
    train: Train
    seed: int

    def __post_init__(self) -> None:
        for name, value in flat(self).items():
            _check_value(name, value)
        K, batch = self.data.samples_per_class, self.train.batch_size
        if K is not None and batch % K:
            raise ValueError(f"data.samples_per_class is {K}, expected a divisor of "
                             f"train.batch_size, which is {batch}")  # fmt: skip
        if self.model.width <= 0:
            raise ValueError(f"model.width is {self.model.width}, expected a number > 0")
        if self.loss.start >= 1 and self.loss.start % 1:
            raise ValueError(f"loss.start is {self.loss.start}, expected a fraction of the "
                             "training below 1, or a whole number of epochs")  # fmt: skip
        if self.loss.capture == "input" and self.loss.layers is None:
            raise ValueError("loss.layers is null, expected names of layers for the loss.capture "
                             "input: null is the input of the last linear layer")  # fmt: skip
        if self.train.lr_schedule == "step" and self.train.lr_steps is None:
            raise ValueError("train.lr_steps is null, expected a list of epochs for the "
                             "train.lr_schedule step")  # fmt: skip
        if self.train.select == "best" and not (self.data.validation and self.train.eval_every):
            raise ValueError("train.select is best, expected data.validation images and "
                             "train.eval_every > 0")  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The YAML file as nested dictionaries, without checks of the options."""
    if not path.is_file():
        shipped = [recipe.stem for recipe in sorted(Path(__file__).parent.glob("*.yaml"))]
        if path.name not in shipped:
            raise ValueError(f"recipe {str(path)!r} is missing: expected a YAML file, or one of "
                             + ", ".join(shipped))  # fmt: skip
        path = Path(__file__).with_name(f"{path.name}.yaml")
    recipe = from_yaml(path.read_bytes(), f"recipe {str(path)!r}")
    if not isinstance(recipe, dict):
        raise ValueError(
            f"recipe {str(path)!r} has no sections: expected those of docs/recipes/README.md"
        )
    return recipe


def from_yaml(text: str | bytes, source: str) -> Any:
    """The value of YAML text. The error for wrong text is one line, which names the source."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{source} is not valid YAML: {where}{error.problem}") from None
    except yaml.YAMLError as error:  # bytes that are not text
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None


def parse(recipe: dict[str, Any], changes: dict[str, object] | None = None) -> Options:
    """The checked options of a recipe. `changes` ({dotted name: value}) override its values."""
    given = dict(_flat({name: value for name, value in recipe.items() if name != "sweep"}))
    given.update(changes or {})
    sections: dict[str, Any] = typing.get_type_hints(Options)
    known = dict(_hints())
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
            raise ValueError(f"{name} is not an option: did you mean {', '.join(near)}?")
    if missing := [name for name in known if name not in given]:
        raise ValueError(f"the recipe has no value for {', '.join(missing)}: expected a value "
                         "for every option")  # fmt: skip
    values: dict[str, Any] = {
        name: _typed(name, value, known[name]) for name, value in given.items()
    }
    parts: dict[str, Any] = {
        section: typing.cast(Any, kind)(
            **{f.name: values[f"{section}.{f.name}"] for f in dataclasses.fields(kind)}
        )
        for section, kind in sections.items()
        if dataclasses.is_dataclass(kind)
    }
    return Options(**parts, seed=values["seed"])


def flat(options: Options) -> dict[str, object]:
    """{dotted name: value}"""
    return dict(_flat(dataclasses.asdict(options)))


def identity(options: Options) -> dict[str, object]:
    """The options that affect results, without the seed. They are equal for runs to be averaged."""
    values = flat(options)
    for section, kind in typing.get_type_hints(Options).items():
        for option in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            if option.metadata.get("no_effect"):
                del values[f"{section}.{option.name}"]
    del values["seed"]
    if options.train.select == "last":  # then it only affects the log
        del values["train.eval_every"]
    terms = options.loss.name.split("+")
    unused = [f"loss.{term}_weight" for term in ("gini", "kl") if term not in terms]
    if terms == ["ce"]:  # without terms the other options have no effect
        unused = [name for name in values
                  if name.startswith("loss.")
                  and name not in ("loss.name", "loss.label_smoothing")]  # fmt: skip
    return {name: value for name, value in values.items() if name not in unused}


def _flat(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in mapping.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _hints() -> Iterator[tuple[str, object]]:
    for section, kind in typing.get_type_hints(Options).items():
        if dataclasses.is_dataclass(kind):
            for name, hint in typing.get_type_hints(kind).items():
                yield f"{section}.{name}", hint
        else:
            yield section, kind


def _typed(name: str, value: object, hint: object) -> object:
    """The value, checked against the type. YAML reads 1e-3 as text, and 1 in place of 1.0."""
    allowed = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in allowed:
        return None
    for kind in allowed:
        if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if typing.get_origin(kind) is list:
            of = kind.__args__[0]
            if isinstance(value, list) and value and all(type(item) is of for item in value):
                return value
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
    raise TypeError(f"{name} is {value!r}, expected {names.replace('NoneType', 'null')}")


def _check_value(name: str, value: Any) -> None:
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(CHOICES[name])}")
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, expected a finite number")
    if name in AT_LEAST and not value >= AT_LEAST[name]:
        raise ValueError(f"{name} is {value}, expected at least {AT_LEAST[name]}")
    if name in AT_MOST and not value <= AT_MOST[name]:
        raise ValueError(f"{name} is {value}, expected at most {AT_MOST[name]}")
