"""The operators of every backend for PyTorch's dispatcher (see backends/contract.py).

Eager mode, torch.compile, make_fx, fake and meta tensors use the same operators. csrc/ registers
the kernels and autograd formulas of the compiled library, this file those of Triton.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, library

from discfused import backends
from discfused._definitions import accumulation_dtype

# `activation` and `impurity` index ACTIVATIONS and IMPURITIES; `dtype` is the dtype of the sums.
_SCHEMAS = {
    "rows": "(Tensor target, Tensor? sample_weight, SymInt num_classes, SymInt ignore_index, "
    "ScalarType dtype) -> Tensor[]",
    "terms": "(Tensor features, Tensor[] rows, SymInt num_classes, Tensor? prior, int activation, "
    "int impurity, float gini_weight, float kl_weight) "
    "-> (Tensor penalty, Tensor gini, Tensor kl, Tensor[] kept)",
    "gradient": "(Tensor features, Tensor[] rows, Tensor[] kept, Tensor? grad_penalty, "
    "Tensor? grad_gini, Tensor? grad_kl, int activation, float gini_weight, float kl_weight) "
    "-> Tensor",
    "histogram": "(Tensor features, Tensor[] rows, SymInt num_classes, int activation) -> Tensor",
    "histogram_gradient": "(Tensor grad, Tensor features, Tensor[] rows, int activation) -> Tensor",
    "sizes": "(Tensor[] rows, SymInt samples, SymInt num_classes) -> Tensor",
}

_namespace = library.Library("discfused", "DEF")


class Operators:
    """The operators of a backend, with the names of the contract."""

    rows: Callable[..., list[Tensor]]
    terms: Callable[..., tuple[Tensor, Tensor, Tensor, list[Tensor]]]
    gradient: Callable[..., Tensor]
    histogram: Callable[..., Tensor]
    histogram_gradient: Callable[..., Tensor]
    sizes: Callable[..., Tensor]

    def __init__(self, backend: str):
        for name in _SCHEMAS:
            setattr(self, name, getattr(torch.ops.discfused, f"{backend}_{name}").default)


def _define(backend: Any) -> None:
    """Registers schemas and fake implementations (shapes without data) of a backend's operators."""

    def rows(
        target: Tensor, sample_weight: Any, num_classes: int, ignore_index: int, dtype: torch.dtype
    ) -> list[Tensor]:
        return list(backend.empty_rows(target, num_classes, dtype, sample_weight is not None))

    def terms(features: Tensor, rows: list[Tensor], num_classes: int, *options: Any) -> Any:
        dtype = accumulation_dtype(features.dtype)
        scalars = (features.new_empty((), dtype=dtype) for _ in range(3))
        return *scalars, list(backend.empty_kept(features, rows, num_classes))

    def gradient(features: Tensor, *arguments: Any) -> Tensor:
        return torch.empty_like(features, memory_format=torch.contiguous_format)

    def histogram(features: Tensor, rows: Any, num_classes: int, activation: int) -> Tensor:
        shape = num_classes, features.shape[1]
        return features.new_empty(shape, dtype=accumulation_dtype(features.dtype))

    def histogram_gradient(grad: Tensor, features: Tensor, *arguments: Any) -> Tensor:
        return gradient(features)

    def sizes(rows: list[Tensor], samples: int, num_classes: int) -> Tensor:
        return rows[1].new_empty(num_classes)

    for fake in (rows, terms, gradient, histogram, histogram_gradient, sizes):
        name = f"{backend.name}_{fake.__name__}"
        _namespace.define(name + _SCHEMAS[fake.__name__], tags=(torch.Tag.pt2_compliant_tag,))
        library.register_fake(f"discfused::{name}", fake)


# CudaBackend.rows calls it. It writes the number of labels out of range to `bad`, if there are any.
_namespace.define(
    "cuda_rows_flagged(Tensor target, Tensor? sample_weight, int num_classes, int ignore_index, "
    "ScalarType dtype, Tensor(a!) bad) -> Tensor[]"
)

_operators = {}
for _backend in backends.fused():
    _define(_backend)
    _operators[_backend.name] = Operators(_backend.name)
    # Operators in Python. The compiled library registers its own when it is loaded.
    for _name in _SCHEMAS:
        if hasattr(_backend, _name):
            _namespace.impl(
                f"{_backend.name}_{_name}", getattr(_backend, _name), "CompositeExplicitAutograd"
            )


def named(backend: str) -> Operators:
    return _operators[backend]


# ---------------------------------------------------------------- autograd of Triton's operators
# csrc/autograd.cpp is the same for the others. `register_autograd` would make the same of two plain
# functions, but it searches all arguments for tensors at every call, which takes the host's time.

_triton = named("triton")


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: list[Tensor], *options: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            *scalars, kept = _triton.terms(features, rows, *options)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features, *rows, *kept)
        _, _, activation, _, *weights = options
        ctx.rows, ctx.options = len(rows), (activation, *weights)
        return *scalars, kept

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        features, *saved = ctx.saved_tensors
        rows, kept = saved[: ctx.rows], saved[ctx.rows :]
        gradient = _triton.gradient(features, rows, kept, *upstream[:3], *ctx.options)
        return gradient, *[None] * 7


class _Histogram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: list[Tensor], *options: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            table = _triton.histogram(features, rows, *options)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features, *rows)
        _, ctx.activation = options
        return table

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (grad,) = upstream
        features, *rows = ctx.saved_tensors
        if grad is not None:
            grad = _triton.histogram_gradient(grad, features, rows, ctx.activation)
        return grad, *[None] * 3


class _Once(torch.autograd.Function):
    """A gradient that is to be differentiated again (create_graph): an error, never a number."""

    @staticmethod
    def forward(ctx: Any, operator: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        raise RuntimeError(
            'the "triton" backend of discfused cannot be differentiated twice: '
            'use backend="reference" for double backward'
        )


def _with_autograd(operator: Any, formula: Any) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(value, Tensor) and value.requires_grad for value in arguments
        ):
            return formula(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return call


for _name, _formula in (
    ("terms", _Terms.apply),
    ("histogram", _Histogram.apply),
    ("gradient", partial(_Once.apply, _triton.gradient)),
    ("histogram_gradient", partial(_Once.apply, _triton.histogram_gradient)),
):
    _implementation = _with_autograd(getattr(_triton, _name), _formula)
    _namespace.impl(f"triton_{_name}", _implementation, "Autograd")
