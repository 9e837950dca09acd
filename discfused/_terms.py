"""Computes the terms of checked arguments: selects the backend and calls its operators."""

from typing import Any

import torch
from torch import Tensor

from discfused import _batch, _cross_entropy, _inputs, _ops, backends, reference
from discfused._class_sums import ClassSums
from discfused._definitions import ACTIVATIONS, IMPURITIES, accumulation_dtype
from discfused._modes import in_forward_mode, in_transform
from discfused.backends.bad_labels import bad_labels


def terms(
    layers: list[Tensor],
    target: Tensor,
    C: int,
    sample_weight: Tensor | None,
    prior: str | Tensor,
    options: _inputs.Options,
    gini_weight: float,
    kl_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """gini_weight * gini + kl_weight * kl, gini, kl: each averaged over the layers."""
    name = _backend(target.device.type, options.backend)
    prepared: dict[torch.dtype, tuple[Any, Tensor | None]] = {}
    results = []
    for x in layers:
        dtype = accumulation_dtype(x.dtype)
        if dtype not in prepared:  # once for all layers of the same precision
            pi = _inputs.prior(prior, C, dtype, target.device)
            prepared[dtype] = _rows(name, target, sample_weight, C, options, dtype), pi
        rows, pi = prepared[dtype]
        if name == "reference":
            gini, kl = reference.disc_terms(x, rows, pi, options.activation, options.impurity)
            results.append((gini_weight * gini + kl_weight * kl, gini, kl))
        else:
            # torch.compile would make a weight that is passed to the operator a constant.
            compiling = torch.compiler.is_compiling()
            penalty, gini, kl, _ = _ops.named(name).terms(
                x, rows, C, pi, ACTIVATIONS.index(options.activation),
                IMPURITIES.index(options.impurity),
                *((1.0, 1.0) if compiling else (gini_weight, kl_weight)),
            )  # fmt: skip
            if compiling:
                penalty = gini_weight * gini + kl_weight * kl
            results.append((penalty, gini, kl))
    if len(results) == 1:
        return results[0]
    return tuple(sum(values) / len(values) for values in zip(*results, strict=True))


def terms_of_sums(
    sums: ClassSums,
    prior: str | Tensor,
    options: _inputs.Options,
    gini_weight: float,
    kl_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `terms`, from class sums. With one row H_c of weight n_c for each class, the class
    histogram of H is H."""
    C = len(sums.sizes)
    classes = torch.arange(C, device=sums.sizes.device)
    return terms(sums.histograms(), classes, C, sums.sizes, prior, options, gini_weight, kl_weight)


def class_sums(
    layers: list[Tensor],
    target: Tensor,
    C: int,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: _inputs.Options,
    dtype: torch.dtype,
) -> ClassSums:
    """The class sums of a batch, in this dtype or a wider one. `weight`: of cross-entropy."""
    name = _backend(target.device.type, options.backend)
    prepared: dict[torch.dtype, tuple[Any, Tensor]] = {}
    tables = []
    for x in layers:
        acc = accumulation_dtype(x.dtype)
        dtype = torch.promote_types(dtype, acc)
        if acc not in prepared:
            rows = _rows(name, target, sample_weight, C, options, acc)
            if name == "reference":
                sizes = rows.sum(0)
            else:
                sizes = _ops.named(name).sizes(rows, target.shape[0], C)
            prepared[acc] = rows, sizes
        rows, sizes = prepared[acc]
        tables.append(_histogram(name, x, rows, C, options) * sizes[:, None])
    if target.device.type != "cpu" and not target.dtype.is_floating_point:
        target = _cross_entropy.in_range(target, C, options.ignore_index)
    numbers = [
        _cross_entropy.counted(target, w, options.ignore_index, sample_weight, dtype)
        for w in (None, weight)
    ]
    counts = torch.stack([*numbers, torch.ones_like(numbers[0])])
    _, sizes = prepared.get(torch.float64) or prepared[torch.float32]
    return ClassSums(tuple(table.to(dtype) for table in tables), sizes.to(dtype), counts)


def class_histogram(
    x: Tensor, target: Tensor, C: int, sample_weight: Tensor | None, options: _inputs.Options
) -> Tensor:
    name = _backend(x.device.type, options.backend)
    rows = _rows(name, target, sample_weight, C, options, accumulation_dtype(x.dtype))
    return _histogram(name, x, rows, C, options)


def _histogram(name: str, x: Tensor, rows: Any, C: int, options: _inputs.Options) -> Tensor:
    if name == "reference":
        return reference.class_histogram(x, rows, options.activation)
    return _ops.named(name).histogram(x, rows, C, ACTIVATIONS.index(options.activation))


def _rows(
    name: str,
    target: Tensor,
    sample_weight: Tensor | None,
    C: int,
    options: _inputs.Options,
    dtype: torch.dtype,
) -> Any:
    """The assignment of rows to classes, in the format of the backend."""
    if target.requires_grad:
        target = target.detach()
    arguments = target, sample_weight, C, options.ignore_index, dtype
    if name != "reference":
        is_hard = not target.is_floating_point()
        if is_hard and name in ("triton", "cuda") and _inputs.readable(target, waiting=True):
            bad_labels(target.device).watch(target, C, options.ignore_index)
        return _ops.named(name).rows(*arguments)
    _batch.check_labels(target, C, options.ignore_index)
    return reference.membership(*arguments)


def _backend(device_type: str, requested: str | None) -> str:
    """The backend's name. Transforms of torch.func and forward mode need the reference, because
    they cannot differentiate kernels."""
    if in_transform() or in_forward_mode():
        if requested in (None, "reference"):
            return "reference"
        raise RuntimeError(
            f"backend is {requested!r}, which supports neither torch.func nor forward-mode "
            'differentiation: use backend="reference", or leave backend=None'
        )
    return backends.resolve(device_type, requested)
