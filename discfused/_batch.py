"""The checks of a batch: features, logits, target and sample weights.

Whether labels are in range is left to the fused backends, which read every label anyway.
"""

import torch
from torch import Tensor

from discfused import _cross_entropy
from discfused._definitions import accumulation_dtype, activate
from discfused._inputs import (
    Options,
    floats,
    positive,
    readable,
    same_device,
    shape,
    tensor,
    weights,
)

INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def checked(
    features: object, target: object, C: int, sample_weight: object, options: Options
) -> tuple[list[Tensor], Tensor]:
    """Every layer as [N, D], and the target."""
    found = layers(features, options.feature_dim, options.activation)
    device = found[0].device
    t = _target(target, C, options.ignore_index, device)
    for x in found:
        same_device("features", x, device)
        same_length("features", x, t)
    if sample_weight is not None:
        weights("sample_weight", sample_weight, t.shape[0], device)
    if device.type != "cpu" and not t.dtype.is_floating_point:
        if options.check_labels == "sync":
            check_labels(t, C, options.ignore_index, waiting=True)
        elif options.check_labels == "off":
            t = _cross_entropy.in_range(t, C, options.ignore_index)
    return found, t


def checked_layer(
    features: object, target: object, C: int, sample_weight: object, options: Options
) -> tuple[list[Tensor], Tensor]:
    """As `checked`, for functions that accept one tensor of features, not a list."""
    if isinstance(features, (list, tuple)):
        raise TypeError(f"features is a {type(features).__name__}, expected a torch.Tensor")
    return checked(features, target, C, sample_weight, options)


def same_length(name: str, rows: Tensor, t: Tensor) -> None:
    if rows.shape[0] != t.shape[0]:
        raise ValueError(
            f"{name} has {rows.shape[0]} rows, but target has {t.shape[0]}: both must come from "
            "the same batch"
        )


def layers(value: object, feature_dim: int, activation: str) -> list[Tensor]:
    """[N, D] of each layer."""
    if not isinstance(value, (list, tuple)):
        return [_features(value, feature_dim, activation)]
    if not value:
        raise ValueError("features is an empty list, expected one tensor for each layer")
    return [_features(layer, feature_dim, activation) for layer in value]


def _features(value: object, feature_dim: int, activation: str) -> Tensor:
    """[N, D]. Further dimensions are reduced by phi and then the mean.

    The kernels apply phi again, which changes nothing.
    """
    x = floats("features", value)
    if hasattr(x, "full_tensor"):
        raise TypeError(
            "features are a DTensor, expected a torch.Tensor: pass features.full_tensor()"
        )
    if x.dim() < 2:
        raise ValueError(
            f"features have shape {shape(x)}, expected [N, D] or [N, D, ...]: one row per sample"
        )
    dim = feature_dim + x.dim() if feature_dim < 0 else feature_dim
    if not 1 <= dim < x.dim():
        raise ValueError(
            f"feature_dim is {feature_dim}, expected a dimension of features {shape(x)} "
            "other than the first, which holds the samples"
        )
    if x.shape[dim] == 0:
        raise ValueError(f"features have shape {shape(x)}: dimension {dim} holds no feature")
    if x.dim() == 2:
        return x
    rest = [d for d in range(1, x.dim()) if d != dim]
    return activate(x, activation).mean(rest, dtype=accumulation_dtype(x.dtype))


def logits(value: object) -> int:
    """C of logits [N, C]."""
    x = floats("logits", value)
    if x.dim() != 2:
        raise ValueError(
            f"logits have shape {shape(x)}, expected [N, C]: with features every sample needs one "
            "prediction"
        )
    return positive("num_classes", x.shape[1])


def loss_arguments(x: object, t: object, sample_weight: object, ignore_index: int) -> Tensor:
    """The target of a loss without features. F.cross_entropy checks the other arguments."""
    x, t = floats("logits", x), tensor("target", t)
    if not t.dtype.is_floating_point:
        t = _class_indices(t)
    elif x.dim() == 2:
        _check_soft(t, x.shape[1], ignore_index)
    if sample_weight is not None:
        if x.dim() != 2:
            raise ValueError(
                f"sample_weight is given, but logits have shape {shape(x)}: expected [N, C]"
            )
        same_length("logits", x, t)
        weights("sample_weight", sample_weight, x.shape[0], x.device)
    return t


def _target(value: object, num_classes: int, ignore_index: int, device: torch.device) -> Tensor:
    """[N] int64 class indices, or [N, C] class probabilities."""
    t = tensor("target", value)
    same_device("target", t, device)
    if t.dtype.is_floating_point:
        _check_soft(t, num_classes, ignore_index)
        return t
    t = _class_indices(t)
    if t.dim() != 1:
        hint = ""
        if t.shape[1:] == (1,):
            hint = ": drop the last dimension with target.squeeze(1)"
        elif t.shape[1:] == (num_classes,):
            hint = f": class probabilities [N, {num_classes}] are floating, target.float()"
        raise ValueError(f"target has shape {shape(t)}, expected class indices [N]" + hint)
    return t


def _check_soft(t: Tensor, num_classes: int, ignore_index: int) -> None:
    if t.dim() != 2 or t.shape[1] != num_classes:
        raise ValueError(
            f"target has shape {shape(t)} and dtype {t.dtype}, expected class probabilities "
            f"[N, {num_classes}], or class indices [N] of an integer dtype"
        )
    if ignore_index >= 0:
        raise ValueError(
            f"ignore_index is {ignore_index}, but target holds class probabilities: set "
            "sample_weight to 0 for rows to ignore"
        )
    if readable(t) and t.numel() and t.min() < 0:
        row, column = (t < 0).nonzero()[0].tolist()
        raise ValueError(
            f"target[{row}, {column}] is {t[row, column].item()}, expected probabilities >= 0"
        )


def _class_indices(t: Tensor) -> Tensor:
    """Class indices of any integer dtype as int64."""
    if t.dtype == torch.int64:
        return t
    if t.dtype not in INTEGERS:
        raise TypeError(
            f"target has dtype {t.dtype}, expected an integer (class indices) or floating "
            "(class probabilities) dtype"
        )
    long = t.long()
    if t.dtype == torch.uint64 and readable(t) and (long < 0).any():
        row = (long < 0).nonzero()[0].tolist()
        raise IndexError(f"target{row} is {t[tuple(row)].item()}, expected at most 2^63 - 1")
    return long


def check_labels(t: Tensor, num_classes: int, ignore_index: int, waiting: bool = False) -> None:
    """Raises IndexError for labels out of range. Labels on a GPU are read only if `waiting`."""
    if t.dtype.is_floating_point or not readable(t, waiting):
        return
    bad = ((t < 0) | (t >= num_classes)) & (t != ignore_index)
    rows = bad.nonzero().flatten().tolist()
    if rows:
        more = f" ({len(rows)} labels are out of range)" if len(rows) > 1 else ""
        raise IndexError(
            f"target[{rows[0]}] is {t[rows[0]].item()}, expected a class index in "
            f"[0, {num_classes}) or ignore_index {ignore_index}{more}"
        )
