"""One autograd layer over the backend contract.

Eager mode runs the plain autograd.Functions at the end of this file, because a registered op costs
several times as much host time per call; torch.compile sees the ops of `_ops.py`. Both run the
same functions: `terms_forward`, `histogram_forward` and `gradient`.
"""

from typing import Any

import torch
from torch import Tensor

from discfused import _inputs
from discfused.backends.contract import (
    Backend,
    Histogram,
    Labels,
    Members,
    Pull,
    Settings,
    Terms,
    accumulation_dtype,
    is_soft,
    ordered_sum,
)
from discfused.reference import PROBABILITY_FLOOR, membership, ratio


def _members(
    backend: Backend, labels: Labels, slots: int, features: Tensor, activation: str
) -> Members:
    dtype = accumulation_dtype(features.dtype)
    if not is_soft(labels):
        if labels.weight is not None or labels.sample_weight is not None:
            weight, sample_weight = (
                None if w is None else w.to(dtype) for w in (labels.weight, labels.sample_weight)
            )
            labels = labels._replace(weight=weight, sample_weight=sample_weight)
        try:
            return backend.members(labels, slots, features, activation)
        except IndexError:
            _inputs.check_labels(labels.target, labels.num_classes, labels.ignore_index)
            raise
    # Soft labels may touch every class: each has its slot, and m is a matrix.
    m = membership(labels, dtype).detach()
    row_weight = m.sum(1)
    total = ordered_sum(row_weight)
    return Members(
        slot=torch.empty(0, dtype=torch.int32, device=m.device),
        row_weight=row_weight,
        total=total,
        slot_class=torch.arange(labels.num_classes, device=m.device),
        share=ratio(m.sum(0), total),
        soft=m,
    )


def _slot_prior(
    prior: Tensor | None, members: Members, reverse: bool
) -> tuple[Tensor, Tensor | None]:
    """The prior of every slot, and what the classes without a slot add to the KL divergence.

    A class that is absent from the batch has q_c = 0, clamped to the floor: a constant.
    """
    if prior is None:
        return members.share, None
    slot_class = members.slot_class
    if slot_class.shape == prior.shape:
        return prior, None
    slot_prior = torch.where(slot_class < 0, 0, prior[slot_class.clamp(min=0)])
    if reverse:  # a term of KL(q || pi) with q_c = 0 is 0
        return slot_prior, None

    def against_floor(p: Tensor) -> Tensor:
        return ordered_sum(torch.special.xlogy(p, p / PROBABILITY_FLOOR))

    return slot_prior, against_floor(prior) - against_floor(slot_prior)


def _slots(features: Tensor, labels: Labels) -> int:
    """S in the terms"""
    C = labels.num_classes
    return C if is_soft(labels) else min(C, features.shape[0])


def keeps_slope(backend: Backend, features: Tensor, labels: Labels, center: bool) -> bool:
    """Whether a forward that a backward will follow keeps the slope of the table."""
    return center and not is_soft(labels) and backend.keeps_slope(features, labels.num_classes)


def terms_forward(
    backend: Backend,
    features: Tensor,
    labels: Labels,
    prior: Tensor | None,
    settings: Settings,
    gini_weight: float,
    kl_weight: float,
    for_backward: bool,
    save: bool,  # whether the backend may; the size of what it saves depends on data
) -> tuple[Terms, Histogram, Members]:
    members = _members(backend, labels, _slots(features, labels), features, settings.activation)
    prior, absent = _slot_prior(prior, members, settings.reverse)
    slope = for_backward and keeps_slope(backend, features, labels, settings.center)
    terms, histogram = backend.forward(
        features, members, prior, absent, settings, gini_weight, kl_weight, slope, save
    )
    return terms, histogram, members


def histogram_forward(
    backend: Backend, features: Tensor, labels: Labels, activation: str, center: bool
) -> tuple[Histogram, Members]:
    members = _members(backend, labels, labels.num_classes, features, activation)
    histogram = backend.histogram(features, members, activation, center)
    if histogram.carry is not None:
        backend.complete(histogram)
    return histogram, members


def gradient(
    backend: Backend,
    features: Tensor,
    labels: Labels,
    rows: tuple[Tensor, Tensor, Tensor],  # slot, row_weight, total of Members
    mean: Tensor | None,
    table: Tensor | None,
    activation: str,
    pull: Pull | None,
) -> Tensor:
    slot, row_weight, total = rows
    if is_soft(labels):  # m is rebuilt, not kept: it can be larger than all the rest together
        members = _members(backend, labels, labels.num_classes, features, activation)
    else:
        members = Members(slot, row_weight, total, slot_class=None, share=None)
    return backend.gradient(features, members, mean, table, activation, pull)


class _Once(torch.autograd.Function):
    """Passes the gradient on; differentiating it again is an error, never a number."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, backend: Backend, *inputs: Tensor) -> Tensor:
        ctx.backend = backend
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        raise RuntimeError(
            f'the "{ctx.backend.name}" backend of discfused cannot be differentiated twice: '
            'use backend="reference" for double backward'
        )


def _save(ctx: Any, features: Tensor, labels: Labels, members: Members, *state) -> None:
    if not ctx.needs_input_grad[0]:
        return
    ctx.soft = is_soft(labels)
    ctx.numbers = labels.num_classes, labels.ignore_index
    rows = members.slot, members.row_weight, members.total
    given = labels[:3] if ctx.soft else ()  # hard labels live on in the slots
    ctx.save_for_backward(features, *rows, *state, *given)


def _upstream(grad_penalty: Tensor | None, weight: float, grad: Tensor | None) -> Tensor | None:
    """The gradient of a term, by itself and as a part of the penalty.

    Nothing is computed that need not be: on a small batch such a product takes as long as all the
    rest.
    """
    if grad_penalty is None:
        return grad
    return grad_penalty * weight if grad is None else grad_penalty * weight + grad


def _pull_back(ctx: Any, saved: tuple, table: Tensor | None, pull, *upstream: Tensor) -> Tensor:
    features, slot, row_weight, total, mean, *_ = saved
    given = saved[-3:] if ctx.soft else (slot, None, None)
    labels = Labels(*given, *ctx.numbers)
    rows = slot, row_weight, total
    arguments = ctx.backend, features, labels, rows, mean, table, ctx.activation, pull
    if not torch.is_grad_enabled():
        return gradient(*arguments)
    with torch.no_grad():  # grad mode is on in backward only under create_graph=True
        dx = gradient(*arguments)
    return _Once.apply(dx, ctx.backend, features, *upstream)


class DiscTerms(torch.autograd.Function):
    """features -> penalty = gini_weight * gini + kl_weight * kl, gini, kl"""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        labels: Labels,
        prior: Tensor | None,
        settings: Settings,
        backend: Backend,
        gini_weight: float,
        kl_weight: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        terms, histogram, members = terms_forward(
            backend, features, labels, prior, settings, gini_weight, kl_weight,
            for_backward=ctx.needs_input_grad[0], save=ctx.needs_input_grad[0],
        )  # fmt: skip
        state = histogram.mean, histogram.table, terms.feature_coef, terms.slot_coef
        _save(ctx, features, labels, members, *state)
        ctx.backend, ctx.activation = backend, settings.activation
        ctx.weights, ctx.slope = (gini_weight, kl_weight), histogram.slope is not None
        ctx.set_materialize_grads(False)
        return terms.penalty, terms.gini, terms.kl

    @staticmethod
    def backward(ctx: Any, grad_penalty, grad_gini, grad_kl):
        upstream = [g for g in (grad_penalty, grad_gini, grad_kl) if g is not None]
        if not upstream:
            return (None,) * 7
        saved = ctx.saved_tensors  # once: it is made anew each time
        table, feature_coef, slot_coef = saved[5:8]
        gini_weight, kl_weight = ctx.weights
        if grad_gini is None and grad_kl is None:
            pull_gini = pull_kl = grad_penalty
        else:
            pull_gini = _upstream(grad_penalty, gini_weight, grad_gini)
            pull_kl = _upstream(grad_penalty, kl_weight, grad_kl)
            if pull_gini is None or pull_kl is None:
                zero = torch.zeros_like(upstream[0])
                pull_gini, pull_kl = (zero if g is None else g for g in (pull_gini, pull_kl))
            gini_weight = kl_weight = 1.0
        pull = Pull(feature_coef, slot_coef, pull_gini, pull_kl, gini_weight, kl_weight, ctx.slope)
        return (_pull_back(ctx, saved, table, pull, *upstream), *[None] * 6)


class ClassHistogram(torch.autograd.Function):
    """features -> H [C, D]"""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        labels: Labels,
        backend: Backend,
        activation: str,
        center: bool,
    ) -> Tensor:
        histogram, members = histogram_forward(backend, features, labels, activation, center)
        _save(ctx, features, labels, members, histogram.mean)
        ctx.backend, ctx.activation = backend, activation
        return histogram.table

    @staticmethod
    def backward(ctx: Any, grad_table: Tensor):
        return (_pull_back(ctx, ctx.saved_tensors, grad_table, None, grad_table), *[None] * 4)
