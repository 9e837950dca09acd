"""The checks of options and constants; those of a batch are in _batch.py.

All checks run before any kernel. A message names the argument, its value, the expected value and
the fix. Shapes, layouts, dtypes and devices are always checked. Values (for example, that no weight
is NaN) are checked only for CPU tensors that hold data: on a GPU the check would wait for the
device, and under torch.compile it would break the graph.
"""

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from discfused._class_sums import resolve_group
from discfused._definitions import ACTIVATIONS, IMPURITIES
from discfused._modes import in_transform

if TYPE_CHECKING:  # some builds of PyTorch have no torch.distributed
    from torch.distributed import ProcessGroup

REDUCTIONS = ("mean", "sum", "none")
PRIORS = ("batch", "uniform")
LABEL_CHECKS = ("async", "sync", "off")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Options(NamedTuple):
    """The arguments of the terms that are not tensors, checked by `options`."""

    ignore_index: int
    activation: str
    impurity: str
    feature_dim: int
    group: "ProcessGroup | None"
    check_labels: str
    backend: str | None


def options(
    ignore_index: object,
    activation: object,
    feature_dim: object,
    check_labels: object,
    backend: str | None,
    impurity: object = "gini",
    process_group: object = None,
) -> Options:
    return Options(
        integer("ignore_index", ignore_index),
        one_of("activation", activation, ACTIVATIONS),
        one_of("impurity", impurity, IMPURITIES),
        integer("feature_dim", feature_dim),
        resolve_group(process_group),
        one_of("check_labels", check_labels, LABEL_CHECKS),
        backend,
    )


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")
    chosen: str = value
    return chosen


def integer(name: str, value: Any) -> int:
    """The number as a Python int. NumPy integers are accepted."""
    if type(value) is not int and not isinstance(value, torch.SymInt):
        try:
            if isinstance(value, (bool, Tensor)):
                raise TypeError
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} is {value!r}, expected an int") from None
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value}, expected a 64-bit int")
    number: int = value
    return number


def positive(name: str, value: object) -> int:
    if (number := integer(name, value)) < 1:
        raise ValueError(f"{name} is {number}, expected at least 1")
    return number


def non_negative(name: str, value: Any) -> float:
    """The number as a Python float. Numbers of NumPy and tensors of one number are accepted."""
    if type(value) is not float:
        try:
            if isinstance(value, (bool, str, bytes)) or getattr(value, "requires_grad", False):
                raise TypeError
            value = float(value)
        except (TypeError, ValueError, RuntimeError):  # from a tensor with several numbers
            raise TypeError(f"{name} is {value!r}, expected a number") from None
    if not 0 <= value < math.inf:  # also true for NaN
        raise ValueError(f"{name} is {value}, expected a finite number >= 0")
    number: float = value
    return number


def label_smoothing(value: object) -> float:
    value = non_negative("label_smoothing", value)
    if value > 1:
        raise ValueError(f"label_smoothing is {value}, expected a number between 0 and 1")
    return value


def tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
    if value.is_nested:
        raise TypeError(f"{name} is a nested tensor, expected rows of one shape: pad it with "
                        f"{name}.to_padded_tensor(0.0)")  # fmt: skip
    if value.layout != torch.strided:
        raise TypeError(f"{name} is a tensor of layout {value.layout}, expected torch.strided: "
                        f"convert it with {name}.to_dense()")  # fmt: skip
    return value


def floats(name: str, value: object) -> Tensor:
    x = tensor(name, value)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} have dtype {x.dtype}, expected a float16, bfloat16, float32 or "
                        f"float64 tensor: convert them with {name}.float()")  # fmt: skip
    return x


def shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def same_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, expected {device} like the other tensors: "
            f"move it with {name}.to({str(device)!r})"
        )


def readable(tensor: Tensor, waiting: bool = False) -> bool:
    """Whether the values can be read: not while tracing, and not of fake tensors. Values on a GPU
    can be read only if `waiting`."""
    return (
        (tensor.device.type == "cpu" or (waiting and tensor.device.type != "meta"))
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not in_transform()
        and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    )


def numbers(name: str, value: object, length: int, device: torch.device) -> Tensor:
    """[length] real numbers."""
    w = tensor(name, value)
    if w.dim() != 1 or w.shape[0] != length:
        raise ValueError(f"{name} has shape {shape(w)}, expected [{length}]")
    if w.dtype.is_complex or w.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {w.dtype}, expected a real number dtype")
    if w.requires_grad:
        raise ValueError(f"{name} requires grad, but it is a constant here: pass {name}.detach()")
    same_device(name, w, device)
    return w


def weights(name: str, value: object, length: int, device: torch.device) -> Tensor:
    """[length] numbers >= 0."""
    w = numbers(name, value, length, device)
    if readable(w) and w.numel():
        low, high = w.aminmax()  # both are NaN if any weight is
        if not (low >= 0 and high < math.inf):
            worst = int((~((w >= 0) & (w < math.inf))).nonzero()[0])
            raise ValueError(f"{name}[{worst}] is {w[worst].item()}, expected a finite number >= 0")
    return w


def prior(
    value: object, num_classes: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """[C] with sum 1; None for the distribution of the batch."""
    if isinstance(value, str):
        one_of("prior", value, PRIORS)
        if value == "batch":
            return None
        return torch.full((num_classes,), 1 / num_classes, dtype=dtype, device=device)
    if value is None:
        raise ValueError('prior is None, expected "batch", "uniform" or a tensor [C]')
    p = weights("prior", value, num_classes, device)
    p = p.to(torch.promote_types(p.dtype, dtype))
    largest = p.amax()
    if readable(p) and largest == 0:
        raise ValueError("prior sums to 0, expected at least one class with a positive probability")
    p = p / largest  # so that no scale overflows or underflows
    return (p / _ordered_sum(p)).to(dtype)


def _ordered_sum(values: Tensor) -> Tensor:
    """The sum of a vector in a fixed order. PyTorch's sum depends on the number of threads."""
    block = 1024
    padded = torch.nn.functional.pad(values, (0, -values.shape[0] % block))
    return padded.view(-1, block).sum(1).sum()
