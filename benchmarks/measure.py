"""One case: verify every competitor, time all of them in turns, and say what a row must say."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import gpu
from benchmarks.cases import PLANS, Case, Inputs, make_inputs
from benchmarks.competitors import (
    COMPILED,
    COPY,
    CROSS_ENTROPY,
    WAITING,
    Loss,
    loss_of,
    names,
    why_not,
)
from benchmarks.memory import peak_bytes
from benchmarks.timing import (
    Rounds,
    Subject,
    copies,
    differentiated,
    flat,
    in_turns,
    percentiles,
    ratio,
)

# Largest error against the reference in float64: of the value, and of each gradient as
# |error| / |gradient| in the Euclidean norm (bfloat16 rounds the gradient to 8 bits).
VALUE = 1e-6
GRADIENT = {torch.float32: 2e-5, torch.bfloat16: 5e-3}
DIGITS = 4  # significant ones of what is kept


class Measured(NamedTuple):
    rows: dict[tuple[str, str], tuple[list[float], dict]]  # (competitor, direction) -> calls, facts
    skipped: dict[str, str]  # competitor -> why it did not take part
    failed: dict[str, str]  # competitor -> how it disagrees with the reference


def expected(case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """The value and the gradients that the reference gives in float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.sets[0]]
    value = loss_of("reference", case)(inputs.y, *leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def disagreement(loss: Loss, inputs: Inputs, right: tuple[Tensor, ...]) -> str | None:
    """None if the loss agrees with what is expected, else by how much it does not."""
    leaves = inputs.sets[0]
    value = loss(inputs.y, *leaves)
    if not (value.double() - right[0]).abs() <= VALUE * right[0].abs():
        return f"value {value.item():.8g}, the reference in float64 gives {right[0].item():.8g}"
    gradients = torch.autograd.grad(value, leaves)
    for what, gradient, true in zip(("features", "logits"), gradients, right[1:], strict=False):
        error = (gradient.double() - true).norm() / true.norm()
        if not error <= GRADIENT[gradient.dtype]:
            return f"gradient of the {what}: off by {error.item():.1e} of its norm"
    return None


def measure(case: Case, device: str, full: bool, compiles: bool) -> Measured:
    inputs = make_inputs(case, device)
    subjects, skipped, failed = _subjects(case, inputs, device, compiles)
    rounds = in_turns(subjects, device, PLANS["full" if full else "quick"])
    rows = {}
    for direction in case.directions:
        timed = {name: by_direction[direction] for name, by_direction in rounds.items()}
        for name in timed:
            seconds = flat(timed[name])
            facts = case._asdict() | _facts(name, timed, seconds)
            rows[name, direction] = seconds, facts
    for name, subject in subjects.items():
        rows[name, "both"][1]["peak_bytes"] = peak_bytes(subject.call, device)
        if device == "cuda" and case.kind != "step" and name not in WAITING:
            for direction, times in gpu.in_graphs(subject, len(inputs.sets)).items():
                rows[name, direction][1]["cuda_graph"] = [_short(value) for value in times]
    return Measured(rows, skipped, failed)


def _facts(name: str, timed: dict[str, Rounds], seconds: list[float]) -> dict[str, Any]:
    return {
        "seconds": [_short(value) for value in percentiles(seconds)],
        "calls": len(seconds),
        # how many times as long every other competitor takes
        "others": {
            other: [_short(value) for value in ratio(timed[other], timed[name])]
            for other in timed
            if other != name
        },
    }


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _subjects(
    case: Case, inputs: Inputs, device: str, compiles: bool
) -> tuple[dict[str, Subject], dict[str, str], dict[str, str]]:
    """Who is timed; who is not, and why; who computes something else."""
    right = expected(case, inputs)
    torch._dynamo.reset()  # else the second shape would be compiled for every shape
    step = None
    subjects, skipped, failed = {}, {}, {}
    for name in names(case):
        if name == COPY:
            subjects[name] = copies(inputs)
            continue
        if reason := why_not(name, device, case, compiles):
            skipped[name] = reason
            continue
        loss = loss_of(name, case)
        if name != CROSS_ENTROPY:  # the yardstick, which has no features
            try:
                wrong = disagreement(loss, inputs, right)
            except Exception as error:
                if not name.startswith(COMPILED):
                    raise
                # A machine without a compiler must still get the other rows.
                skipped[name] = f"torch.compile failed: {str(error).strip().splitlines()[0]}"
                continue
            if wrong is not None:
                failed[name] = wrong
                continue
        if case.kind == "step":
            step = step or gpu.training_step(case, device)
            subjects[name] = step(loss)
        else:
            subjects[name] = differentiated(loss, inputs, first=int(name == CROSS_ENTROPY))
    return subjects, skipped, failed
