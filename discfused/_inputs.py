"""The door: every public argument is checked and normalised here.

Shapes, dtypes, devices and names are always checked. Values (weights that are not NaN) are checked
for CPU tensors in eager mode only: on a GPU the look would stall the device, and under
torch.compile it would break the graph. Whether labels are in range is left to the fused backends,
which look at each of them anyway; it is checked here for the reference, under the same conditions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from discfused.backends.contract import ACTIVATIONS, Labels, accumulation_dtype, ordered_sum

REDUCTIONS = ("mean", "sum", "none")
KL_DIRECTIONS = ("forward", "reverse")
PRIORS = ("batch", "uniform")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Options:
    """What the terms depend on beside their tensors; checked once, then trusted."""

    ignore_index: int = -100
    activation: str = "relu"
    center: bool = True
    kl_direction: str = "forward"
    feature_dim: int = 1
    eps: float = 1e-6
    backend: str | None = None
    process_group: object = None

    def __post_init__(self):
        one_of("activation", self.activation, ACTIVATIONS)
        one_of("kl_direction", self.kl_direction, KL_DIRECTIONS)
        integer("ignore_index", self.ignore_index)
        integer("feature_dim", self.feature_dim)
        non_negative("eps", self.eps)
        if self.process_group is not None:
            raise NotImplementedError(
                "process_group is not supported yet: the terms are those of each process's own "
                "batch. Leave process_group=None."
            )


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


def integer(name: str, value: object) -> None:
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an int")


def non_negative(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected a number")
    if not 0 <= value < math.inf:  # NaN fails this, too
        raise ValueError(f"{name} is {value}, expected a finite number >= 0")


def label_smoothing(value: object) -> None:
    non_negative("label_smoothing", value)
    if value > 1:
        raise ValueError(f"label_smoothing is {value}, expected a number between 0 and 1")


def _tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
    # The imaginary part of a conjugate, say, is a view that only PyTorch's operators negate.
    if not torch.compiler.is_compiling() and value.is_neg():
        value = value.resolve_neg()
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


def _values_can_be_read(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def features(value: object, feature_dim: int) -> Tensor:
    """[N, D, ...] (or the layout that feature_dim tells) -> [N, D]: mean over the rest."""
    x = _floats("features", value)
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
    return x.mean(rest, dtype=accumulation_dtype(x.dtype))


def layers(value: object) -> Sequence[Tensor]:
    """One tensor for each layer."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError("features is an empty list, expected one tensor for each layer")
        for layer in value:
            _tensor("features", layer)
        return value
    return [_tensor("features", value)]


def logits(value: object) -> int:
    """The number of classes of [N, C] logits."""
    x = _floats("logits", value)
    if x.dim() != 2:
        raise ValueError(
            f"logits have shape {_shape(x)}, expected [N, C]: with features every sample has one "
            "prediction"
        )
    return x.shape[1]


def labels(
    t: object,
    x: Tensor,
    num_classes: int,
    weight: object,
    sample_weight: object,
    ignore_index: int,
    look: bool,
) -> Labels:
    """The checked labels of features [N, D]; constants, so no gradient flows to them.

    `look` is whether class indices must be in range from here on. The fused backends look at every
    one of them anyway, and raise check_labels' error.
    """
    t = target(t, num_classes, ignore_index, x.device, look)
    same_length("features", x, t)
    return Labels(
        t.detach() if t.requires_grad else t,  # on a small batch every op counts
        weights("weight", weight, num_classes, x.device),
        weights("sample_weight", sample_weight, x.shape[0], x.device),
        num_classes,
        ignore_index,
    )


def loss_arguments(
    x: object, t: object, weight: object, sample_weight: object, ignore_index: int
) -> Tensor:
    """The target of a loss without features: any shape goes that cross_entropy takes."""
    x, t = _floats("logits", x), _tensor("target", t)
    integer("ignore_index", ignore_index)
    if x.dim() == 2:
        t = target(t, x.shape[1], ignore_index, x.device)
        same_length("logits", x, t)
        weights("sample_weight", sample_weight, x.shape[0], x.device)
    elif sample_weight is not None:
        raise ValueError(
            f"sample_weight is given, and logits have shape {_shape(x)}: expected [N, C]"
        )
    if x.dim() > 0:
        weights("weight", weight, x.shape[min(x.dim() - 1, 1)], x.device)
    return t


def target(
    value: object, num_classes: int, ignore_index: int, device: torch.device, look: bool = True
) -> Tensor:
    """[N] int64 class indices, or [N, C] class probabilities."""
    t = _tensor("target", value)
    integer("num_classes", num_classes)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    same_device("target", t, device)
    if t.is_floating_point():
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
        if _values_can_be_read(t) and t.numel() and t.min() < 0:
            row, column = (t < 0).nonzero()[0].tolist()
            raise ValueError(
                f"target[{row}, {column}] is {t[row, column].item()}, expected probabilities >= 0"
            )
        return t
    if t.dtype == torch.bool or t.is_complex():
        raise TypeError(
            f"target has dtype {t.dtype}, expected an integer (class indices) or floating "
            "(class probabilities) dtype"
        )
    if t.dim() != 1:
        raise ValueError(
            f"target has shape {_shape(t)}, expected class indices [N]"
            + (": drop the last dimension with target.squeeze(1)" if t.shape[1:] == (1,) else "")
        )
    t = t if t.dtype == torch.int64 else t.long()
    if look:
        check_labels(t, num_classes, ignore_index)
    return t


def check_labels(t: Tensor, num_classes: int, ignore_index: int) -> None:
    """An IndexError if class indices are out of range, where they can be read."""
    if not _values_can_be_read(t) or not t.numel():
        return
    low, high = t.aminmax()
    if low.item() >= 0 and high.item() < num_classes:  # numbers compare faster than tensors
        return
    bad = ((t < 0) | (t >= num_classes)) & (t != ignore_index)
    rows = bad.nonzero().flatten().tolist()
    if rows:
        more = f" ({len(rows)} labels are out of range)" if len(rows) > 1 else ""
        raise IndexError(
            f"target[{rows[0]}] is {t[rows[0]].item()}, expected a class index in "
            f"[0, {num_classes}) or ignore_index {ignore_index}{more}"
        )


def same_length(name: str, rows: Tensor, t: Tensor) -> None:
    if rows.shape[0] != t.shape[0]:
        raise ValueError(
            f"{name} has {rows.shape[0]} rows, but target has {t.shape[0]}: both must come from "
            "the same batch"
        )


def weights(name: str, value: object, length: int, device: torch.device) -> Tensor | None:
    """[length] non-negative numbers, or None."""
    if value is None:
        return None
    w = _tensor(name, value)
    if w.dim() != 1 or w.shape[0] != length:
        raise ValueError(f"{name} has shape {_shape(w)}, expected [{length}]")
    if w.is_complex() or w.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {w.dtype}, expected a real number dtype")
    if w.requires_grad:
        raise ValueError(f"{name} requires grad, but it is a constant here: pass {name}.detach()")
    same_device(name, w, device)
    check_weights(name, w)
    return w


def check_weights(name: str, w: Tensor) -> None:
    if not _values_can_be_read(w) or not w.numel():
        return
    low, high = w.aminmax()  # both NaN if any weight is
    if not (low >= 0 and high < math.inf):
        worst = (~((w >= 0) & (w < math.inf))).nonzero()[0].item()
        raise ValueError(f"{name}[{worst}] is {w[worst].item()}, expected a finite number >= 0")


def prior(value: object, num_classes: int, dtype: torch.dtype, device: torch.device):
    """[C] summing to 1, or None for the prior of the batch."""
    if isinstance(value, str):
        one_of("prior", value, PRIORS)
        if value == "batch":
            return None
        return torch.full((num_classes,), 1 / num_classes, dtype=dtype, device=device)
    p = weights("prior", value, num_classes, device)
    if p is None:
        raise ValueError('prior is None, expected "batch", "uniform" or a tensor [C]')
    p = p.to(torch.promote_types(p.dtype, dtype))
    largest = p.amax()
    if _values_can_be_read(p) and largest == 0:
        raise ValueError("prior sums to 0, expected at least one class with a positive share")
    p = p / largest  # so that no scale overflows or vanishes
    return (p / ordered_sum(p)).to(dtype)
