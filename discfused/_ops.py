"""The ops that torch.compile sees: one for each way forward and back, for every backend.

They take the backend by name, and return all that backward needs: `mean`, `table`, `feature_coef`,
`slot_coef`, `slot`, `row_weight` and `total` are those of the contract; a mean that does not exist
is an empty tensor, and so is a table that was not kept.
"""

from typing import Any

import torch
from torch import Tensor, library

from discfused import _autograd, backends
from discfused.backends.contract import Labels, Pull, Settings, accumulation_dtype

_LABELS = (
    "Tensor target, Tensor? weight, Tensor? sample_weight, SymInt num_classes, SymInt ignore_index"
)
_ROWS = "Tensor slot, Tensor row_weight, Tensor total"
_COEFS = "Tensor table, Tensor feature_coef, Tensor slot_coef"

_namespace = library.Library("discfused", "DEF")
for _schema in (
    f"disc_terms(Tensor features, {_LABELS}, str activation, str backend, Tensor? prior, "
    "bool center, bool reverse, float eps) "
    f"-> (Tensor gini, Tensor kl, {_ROWS}, Tensor mean, {_COEFS})",
    f"disc_terms_backward(Tensor grad_gini, Tensor grad_kl, Tensor features, {_LABELS}, "
    f"str activation, str backend, {_ROWS}, Tensor mean, {_COEFS}) -> Tensor",
    f"class_histogram(Tensor features, {_LABELS}, str activation, str backend, bool center) "
    f"-> (Tensor table, {_ROWS}, Tensor mean)",
    f"class_histogram_backward(Tensor grad_table, Tensor features, {_LABELS}, "
    f"str activation, str backend, {_ROWS}, Tensor mean) -> Tensor",
):
    _namespace.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _disc_terms(
    features, target, weight, sample_weight, num_classes, ignore_index, activation, backend,
    prior, center, reverse, eps,
):  # fmt: skip
    labels = Labels(target, weight, sample_weight, num_classes, ignore_index)
    settings = Settings(activation, center, reverse, eps)
    # Nothing saved: a fake could not tell its size.
    arguments = backends.get(backend), features, labels, prior, settings, 1.0, 1.0
    terms, histogram, members = _autograd.terms_forward(*arguments, for_backward=True, save=False)
    rows = members.slot, members.row_weight, members.total
    table = _or_empty(histogram.table, terms.gini)
    coefs = table, terms.feature_coef, terms.slot_coef
    return terms.gini, terms.kl, *rows, _or_empty(histogram.mean, terms.gini), *coefs


def _disc_terms_backward(
    grad_gini, grad_kl, features, target, weight, sample_weight, num_classes, ignore_index,
    activation, backend, slot, row_weight, total, mean, table, feature_coef, slot_coef,
):  # fmt: skip
    labels = Labels(target, weight, sample_weight, num_classes, ignore_index)
    chosen, mean = backends.get(backend), _or_none(mean)
    slope = _autograd.keeps_slope(chosen, features, labels, mean is not None)  # as forward did
    pull = Pull(feature_coef, slot_coef, grad_gini, grad_kl, 1.0, 1.0, slope)
    return _autograd.gradient(
        chosen, features, labels, (slot, row_weight, total), mean, _or_none(table), activation, pull
    )


def _class_histogram(
    features, target, weight, sample_weight, num_classes, ignore_index, activation, backend, center
):
    labels = Labels(target, weight, sample_weight, num_classes, ignore_index)
    histogram, members = _autograd.histogram_forward(
        backends.get(backend), features, labels, activation, center
    )
    rows = members.slot, members.row_weight, members.total
    return histogram.table, *rows, _or_empty(histogram.mean, histogram.table)


def _class_histogram_backward(
    grad_table, features, target, weight, sample_weight, num_classes, ignore_index, activation,
    backend, slot, row_weight, total, mean,
):  # fmt: skip
    labels = Labels(target, weight, sample_weight, num_classes, ignore_index)
    return _autograd.gradient(
        backends.get(backend), features, labels, (slot, row_weight, total), _or_none(mean),
        grad_table, activation, None,
    )  # fmt: skip


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _or_none(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() else None


# ---------------------------------------------------------------- shapes without data


def _fake_rows(features: Tensor, target: Tensor, center: bool):
    dtype = accumulation_dtype(features.dtype)
    N, D = features.shape
    slot = features.new_empty(0 if target.is_floating_point() else N, dtype=torch.int32)
    row_weight = features.new_empty(N, dtype=dtype)
    total = features.new_empty((), dtype=dtype)
    return slot, row_weight, total, features.new_empty(D if center else 0, dtype=dtype)


def _disc_terms_fake(
    features, target, weight, sample_weight, num_classes, ignore_index, activation, backend,
    prior, center, reverse, eps,
):  # fmt: skip
    N, D = features.shape
    # sym_min, not a comparison: N <= C must not become a guard, or batches on either side of it
    # would need a graph each.
    S = num_classes if target.is_floating_point() else torch.sym_min(num_classes, N)
    dtype, chosen = accumulation_dtype(features.dtype), backends.get(backend)
    table_shape = (S, D) if chosen.keeps_table else (0,)
    gini, kl, table, feature_coef, slot_coef = (
        features.new_empty(shape, dtype=dtype)
        for shape in ((), (), table_shape, (chosen.coef_rows, D), (S,))
    )
    return gini, kl, *_fake_rows(features, target, center), table, feature_coef, slot_coef


def _class_histogram_fake(
    features, target, weight, sample_weight, num_classes, ignore_index, activation, backend, center
):
    shape = (num_classes, features.shape[1])
    table = features.new_empty(shape, dtype=accumulation_dtype(features.dtype))
    return table, *_fake_rows(features, target, center)


def _disc_terms_backward_fake(grad_gini, grad_kl, features, *_):
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _class_histogram_backward_fake(grad_table, features, *_):
    return torch.empty_like(features, memory_format=torch.contiguous_format)


# ---------------------------------------------------------------- registration


def _setup(outputs: int):
    """Keep the inputs that backward repeats, and the outputs that are there for it."""

    def setup_context(ctx: Any, inputs, output) -> None:
        features, target, weight, sample_weight, *numbers, activation, backend = inputs[:8]
        ctx.save_for_backward(features, target, weight, sample_weight, *output[outputs:])
        ctx.options = *numbers, activation, backend
        ctx.unused = [None] * (len(inputs) - 1)

    return setup_context


def _autograd_of(backward, outputs: int):
    def run(ctx: Any, *grads: Tensor):
        inputs, kept = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        return backward(*grads[:outputs], *inputs, *ctx.options, *kept), *ctx.unused

    return run


for _name, _outputs in (("disc_terms", 2), ("class_histogram", 1)):
    for _op in (_name, f"{_name}_backward"):
        _namespace.impl(_op, globals()[f"_{_op}"], "CompositeExplicitAutograd")
        library.register_fake(f"discfused::{_op}", globals()[f"_{_op}_fake"])
    library.register_autograd(
        f"discfused::{_name}",
        _autograd_of(getattr(torch.ops.discfused, f"{_name}_backward").default, _outputs),
        setup_context=_setup(_outputs),
    )
