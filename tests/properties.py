"""Random batches from Hypothesis, for the properties in test_facts.py."""

import os
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis", reason="Hypothesis is not installed: pip install '.[test]'")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import cases
from cases import soft_labels
from discfused import disc_terms
from discfused._definitions import ACTIVATIONS, IMPURITIES
from formulas import Answer, answer

# The same examples on every machine and in every run.
# Triton's interpreter is a hundred times slower than the others.
fact = settings(
    max_examples=8 if os.environ.get("TRITON_INTERPRET") == "1" else 40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # `backend` is a string
)


@dataclass(frozen=True)
class Batch:
    x: Tensor  # [N, D] float64
    target: Tensor  # [N], or [N, C]
    num_classes: int
    options: dict[str, Any] = field(default_factory=dict)  # of disc_terms

    def having(self, **changes: Any) -> "Batch":
        """The same batch with some fields replaced. Other names are options."""
        fields = {name: changes.pop(name) for name in list(changes) if name in FIELDS}
        return replace(self, **fields, options={**self.options, **changes})


FIELDS = tuple(Batch.__dataclass_fields__)


@st.composite
def batches(draw, soft=None, rows=(1, 12), dead=True) -> Batch:
    """Batches of all sizes, labels and options. soft=None: hard or soft; dead: one may be dead.

    The features come from a seed, because ties would hit the kink of an activation, where the
    gradient is not unique.
    """
    N = draw(st.integers(*rows), label="N")
    D = draw(st.integers(1, 5), label="D")
    C = draw(st.sampled_from([1, 2, 3, 5, 40]), label="C")  # 40: more classes than rows
    soft = draw(st.booleans(), label="soft") if soft is None else soft
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1), label="seed"))

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    x = torch.randn(N, D, generator=generator, dtype=torch.float64) + rand(D)
    kind = draw(st.sampled_from(["any sign", "never negative", "one dead"]), label="features")
    if kind == "never negative":  # as an average-pooled ReLU map
        x = x.abs() + 0.1
    elif kind == "one dead" and dead:
        x[:, 0] = 0

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        target = soft_labels(N, C) if soft else torch.randint(0, C, (N,))
    if not soft and draw(st.booleans(), label="some ignored"):
        target[::3] = -100

    options: dict[str, Any] = {
        "activation": draw(st.sampled_from(ACTIVATIONS), label="activation"),
        "impurity": draw(st.sampled_from(IMPURITIES), label="impurity"),
        "prior": draw(st.sampled_from(["batch", "uniform", "tensor"]), label="prior"),
    }
    if options["prior"] == "tensor":
        options["prior"] = rand(C) + 0.1
    if draw(st.booleans(), label="sample_weight"):
        options["sample_weight"] = rand(N) + 0.1
        options["sample_weight"][0] = draw(st.sampled_from([0.0, 1.0]), label="first row's weight")
    return Batch(x, target, C, options)


def terms(batch: Batch, backend: str) -> Tensor:
    """[2]: gini and kl"""
    x, y, C, options = batch.x, batch.target, batch.num_classes, batch.options
    return torch.stack(disc_terms(x, y, C, backend=backend, **options))


def terms_and_gradients(batch: Batch, backend: str) -> tuple[Tensor, Tensor]:
    x, y, C, options = batch.x, batch.target, batch.num_classes, batch.options
    return cases.terms_and_gradients(x, y, backend, C, **options)


def formulas(batch: Batch) -> Answer:
    return answer(batch.x, batch.target, batch.num_classes, **batch.options)


def close(got: Tensor, expected: Tensor, scale: Tensor | float = 1.0, tolerance=1e-9) -> None:
    """Equal up to float64 rounding, relative to the largest number."""
    largest = max([1.0, *torch.as_tensor(scale).flatten().tolist()])
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * largest)
