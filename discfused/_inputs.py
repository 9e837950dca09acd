"""Every check of an argument, before any kernel runs: a sentence that names the argument, its
value, what was expected and what to do.

Shapes, dtypes and devices are always checked. Values (weights that are not NaN) are checked where
they can be read at no cost: tensors on the CPU that hold data. On a GPU that would stall the
device, and under torch.compile break the graph. Whether labels are in range is left to the fused
backends, which read every label anyway.
"""

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from discfused._class_sums import resolve_group
from discfused._definitions import ACTIVATIONS, IMPURITIES, accumulation_dtype, activate

if TYPE_CHECKING:  # not every build of PyTorch has it
    from torch.distributed import ProcessGroup

REDUCTIONS = ("mean", "sum", "none")
PRIORS = ("batch", "uniform")
LABEL_CHECKS = ("async", "sync", "off")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


class Options(NamedTuple):
    """The arguments of the terms that are no tensors, checked (see `options`)."""

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
    impurity: object,
    feature_dim: object,
    process_group: object,
    check_labels: object,
    backend: str | None,
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
    """The number as Python's own int; NumPy's integers are taken, too."""
    if type(value) is not int and not isinstance(value, torch.SymInt):
        try:
            if isinstance(value, (bool, Tensor)):
                raise TypeError
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} is {value!r}, expected an int") from None
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {value}, expected an int of 64 bits")
    number: int = value
    return number


def non_negative(name: str, value: Any) -> float:
    """The number as Python's own float; those of NumPy and of tensors are taken, too."""
    if type(value) is not float:
        try:
            if isinstance(value, (bool, str, bytes)) or getattr(value, "requires_grad", False):
                raise TypeError
            value = float(value)
        except (TypeError, ValueError, RuntimeError):  # of a tensor with several numbers
            raise TypeError(f"{name} is {value!r}, expected a number") from None
    if not 0 <= value < math.inf:  # NaN fails this, too
        raise ValueError(f"{name} is {value}, expected a finite number >= 0")
    number: float = value
    return number


def label_smoothing(value: object) -> float:
    value = non_negative("label_smoothing", value)
    if value > 1:
        raise ValueError(f"label_smoothing is {value}, expected a number between 0 and 1")
    return value


def _tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
    return value


def _floats(name: str, value: object) -> Tensor:
    x = _tensor(name, value)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} have dtype {x.dtype}, expected a float16, bfloat16, float32 or "
                        f"float64 tensor: convert them with {name}.float()")  # fmt: skip
    return x


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def same_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, expected {device} like the rest: "
            f"move it with {name}.to({str(device)!r})"
        )


def same_length(name: str, rows: Tensor, t: Tensor) -> None:
    if rows.shape[0] != t.shape[0]:
        raise ValueError(
            f"{name} has {rows.shape[0]} rows, but target has {t.shape[0]}: both must come from "
            "the same batch"
        )


def _readable(tensor: Tensor, waiting: bool = False) -> bool:
    """Whether the numbers can be looked at: not in a trace, and not those of a fake tensor; nor,
    but for `waiting`, those of a GPU."""
    return (
        (tensor.device.type == "cpu" or (waiting and tensor.device.type != "meta"))
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    )


def features(value: object, feature_dim: int, activation: str) -> Tensor:
    """[N, D] as it is; more dimensions: phi, then the mean over all but the first and feature_dim.

    phi again changes nothing then.
    """
    x = _floats("features", value)
    if hasattr(x, "full_tensor"):
        raise TypeError(
            "features are a DTensor, expected a torch.Tensor: pass features.full_tensor()"
        )
    if x.dim() < 2:
        raise ValueError(
            f"features have shape {_shape(x)}, expected [N, D] or [N, D, ...]: one row per sample"
        )
    dim = feature_dim + x.dim() if feature_dim < 0 else feature_dim
    if not 1 <= dim < x.dim():
        raise ValueError(
            f"feature_dim is {feature_dim}, expected a dimension of features {_shape(x)} "
            "other than the first, which holds the samples"
        )
    if x.shape[dim] == 0:
        raise ValueError(f"features have shape {_shape(x)}: dimension {dim} holds no feature")
    if x.dim() == 2:
        return x
    rest = [d for d in range(1, x.dim()) if d != dim]
    return activate(x, activation).mean(rest, dtype=accumulation_dtype(x.dtype))


def layers(value: object, feature_dim: int, activation: str) -> list[Tensor]:
    """[N, D] of each layer."""
    if not isinstance(value, (list, tuple)):
        return [features(value, feature_dim, activation)]
    if not value:
        raise ValueError("features is an empty list, expected one tensor for each layer")
    return [features(layer, feature_dim, activation) for layer in value]


def logits(value: object) -> int:
    """The number of classes of [N, C] logits."""
    x = _floats("logits", value)
    if x.dim() != 2:
        raise ValueError(
            f"logits have shape {_shape(x)}, expected [N, C]: with features every sample has one "
            "prediction"
        )
    return x.shape[1]


def loss_arguments(x: object, t: object, sample_weight: object, ignore_index: int) -> Tensor:
    """The target of a loss without features: F.cross_entropy checks the rest."""
    x, t = _floats("logits", x), _tensor("target", t)
    if not t.dtype.is_floating_point:
        t = class_indices(t)
    elif x.dim() == 2:
        _check_soft(t, x.shape[1], ignore_index)
    if sample_weight is not None:
        if x.dim() != 2:
            raise ValueError(
                f"sample_weight is given, and logits have shape {_shape(x)}: expected [N, C]"
            )
        same_length("logits", x, t)
        weights("sample_weight", sample_weight, x.shape[0], x.device)
    return t


def target(value: object, num_classes: int, ignore_index: int, device: torch.device) -> Tensor:
    """[N] int64 class indices, or [N, C] class probabilities."""
    t = _tensor("target", value)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    same_device("target", t, device)
    if t.dtype.is_floating_point:
        _check_soft(t, num_classes, ignore_index)
        return t
    t = class_indices(t)
    if t.dim() != 1:
        hint = ""
        if t.shape[1:] == (1,):
            hint = ": drop the last dimension with target.squeeze(1)"
        elif t.shape[1:] == (num_classes,):
            hint = f": class probabilities [N, {num_classes}] are floating, target.float()"
        raise ValueError(f"target has shape {_shape(t)}, expected class indices [N]" + hint)
    return t


def _check_soft(t: Tensor, num_classes: int, ignore_index: int) -> None:
    if t.dim() != 2 or t.shape[1] != num_classes:
        raise ValueError(
            f"target has shape {_shape(t)} and dtype {t.dtype}, expected class probabilities "
            f"[N, {num_classes}], or class indices [N] of an integer dtype"
        )
    if ignore_index >= 0:
        raise ValueError(
            f"ignore_index is {ignore_index}, but target holds class probabilities: give the "
            "rows to be ignored sample_weight 0 instead"
        )
    if _readable(t) and t.numel() and t.min() < 0:
        row, column = (t < 0).nonzero()[0].tolist()
        raise ValueError(
            f"target[{row}, {column}] is {t[row, column].item()}, expected probabilities >= 0"
        )


def class_indices(t: Tensor) -> Tensor:
    """int64, whatever integers they are."""
    if t.dtype == torch.int64:
        return t
    if t.dtype not in INTEGERS:
        raise TypeError(
            f"target has dtype {t.dtype}, expected an integer (class indices) or floating "
            "(class probabilities) dtype"
        )
    long = t.long()
    if t.dtype == torch.uint64 and _readable(t) and (long < 0).any():
        row = (long < 0).nonzero()[0].tolist()
        raise IndexError(f"target{row} is {t[tuple(row)].item()}, expected at most 2^63 - 1")
    return long


def check_labels(t: Tensor, num_classes: int, ignore_index: int, waiting: bool = False) -> None:
    """For the reference, which does not look at every label itself; on GPUs if `waiting`."""
    if t.dtype.is_floating_point or not _readable(t, waiting):
        return
    bad = ((t < 0) | (t >= num_classes)) & (t != ignore_index)
    rows = bad.nonzero().flatten().tolist()
    if rows:
        more = f" ({len(rows)} labels are out of range)" if len(rows) > 1 else ""
        raise IndexError(
            f"target[{rows[0]}] is {t[rows[0]].item()}, expected a class index in "
            f"[0, {num_classes}) or ignore_index {ignore_index}{more}"
        )


def numbers(name: str, value: object, length: int, device: torch.device) -> Tensor:
    """[length] real numbers."""
    w = _tensor(name, value)
    if w.dim() != 1 or w.shape[0] != length:
        raise ValueError(f"{name} has shape {_shape(w)}, expected [{length}]")
    if w.dtype.is_complex or w.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {w.dtype}, expected a real number dtype")
    if w.requires_grad:
        raise ValueError(f"{name} requires grad, but it is a constant here: pass {name}.detach()")
    same_device(name, w, device)
    return w


def weights(name: str, value: object, length: int, device: torch.device) -> Tensor:
    """[length] numbers >= 0."""
    w = numbers(name, value, length, device)
    if _readable(w) and w.numel():
        low, high = w.aminmax()  # both NaN if any weight is
        if not (low >= 0 and high < math.inf):
            worst = int((~((w >= 0) & (w < math.inf))).nonzero()[0])
            raise ValueError(f"{name}[{worst}] is {w[worst].item()}, expected a finite number >= 0")
    return w


def prior(
    value: object, num_classes: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """[C] summing to 1; None for the classes of the batch."""
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
    if _readable(p) and largest == 0:
        raise ValueError("prior sums to 0, expected at least one class with a positive probability")
    p = p / largest  # so that no scale overflows or vanishes
    return (p / _ordered_sum(p)).to(dtype)


def _ordered_sum(values: Tensor) -> Tensor:
    """The sum of a vector. PyTorch's own splits a long one by the number of threads."""
    block = 1024
    padded = torch.nn.functional.pad(values, (0, -values.shape[0] % block))
    return padded.view(-1, block).sum(1).sum()
