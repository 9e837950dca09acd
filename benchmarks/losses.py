"""Whole losses, cross-entropy included, and what a call of each costs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import DIRECTIONS, PLANS, Case
from benchmarks.competitors import COPY, FUSED, backend_of, index_add, why_not
from benchmarks.groups import Group, bandwidth, copies, facts, speedups
from benchmarks.memory import peak_bytes
from benchmarks.timing import Calls, Subject, in_turns, percentiles
from discfused import FusedDiscLoss
from discfused.functional import GINI_WEIGHT, KL_WEIGHT

Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, target, features

CROSS_ENTROPY = "cross_entropy"
PLAIN = "eager-index_add"
NAMES = [CROSS_ENTROPY, PLAIN, *FUSED]
# Of the loss and, as |error| / |gradient|, of its gradients; bfloat16 rounds the latter to 8 bits.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2}


def cross_entropy(logits: Tensor, target: Tensor, features: Tensor | None = None) -> Tensor:
    return F.cross_entropy(logits.float(), target)  # as under autocast


def plain(logits: Tensor, target: Tensor, features: Tensor) -> Tensor:
    gini, kl = index_add(features, target, logits.shape[1])
    return cross_entropy(logits, target) + GINI_WEIGHT * gini + KL_WEIGHT * kl


def criteria(device: str, case: Case) -> tuple[dict[str, Criterion], dict[str, str]]:
    """Those that can run here, and why the others cannot."""
    able: dict[str, Criterion] = {CROSS_ENTROPY: cross_entropy, PLAIN: plain}
    skipped = {}
    for name in FUSED:
        reason = why_not(name, device, case, full=True)
        if reason is None:
            able[name] = FusedDiscLoss(backend=backend_of(name))
        else:
            skipped[name] = reason
    return able, skipped


def wrong(
    able: dict[str, Criterion], logits: Tensor, target: Tensor, features: Tensor
) -> dict[str, str]:
    """How criteria disagree with the reference backend in float64: name -> sentence."""

    def results(criterion: Criterion, *leaves: Tensor) -> tuple[Tensor, ...]:
        z, x = (leaf.detach().requires_grad_() for leaf in leaves)
        loss = criterion(z, target, x)
        gradients = torch.autograd.grad(loss, (z, x), materialize_grads=True)
        return tuple(result.double() for result in (loss.detach(), *gradients))

    tolerance = TOLERANCE[features.dtype]
    expected = results(FusedDiscLoss(backend="reference"), logits.double(), features.double())
    sentences = {}
    for name, criterion in able.items():
        if name == CROSS_ENTROPY:
            continue
        found = results(criterion, logits, features)
        for what, a, b in zip(("loss", "logits", "features"), found, expected, strict=True):
            error = ((a - b).norm() / b.norm()).item()
            if not error <= tolerance:
                sentences[name] = f"{what}: off by {error:.1e} of the reference, in the norm"
    return sentences


def alone(criterion: Criterion, logits: Tensor, target: Tensor, features: Tensor) -> Subject:
    """The loss, forward and backward to logits and features, without the network."""
    z, x = (leaf.detach().requires_grad_() for leaf in (logits, features))
    return Subject(
        lambda: criterion(z, target, x),
        lambda loss: torch.autograd.grad(loss, (z, x), allow_unused=True),
    )


def measure_host(case: Case, device: str, full: bool) -> Group:
    """What a call costs where there is next to nothing to compute, against F.cross_entropy."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(case.N, case.C, generator=generator).to(device)
    features = torch.randn(case.N, case.D, generator=generator).abs_().to(device)
    target = torch.randint(0, case.C, (case.N,), generator=generator).to(device)
    able, skipped = criteria(device, case)
    failed = wrong(able, logits, target, features)
    subjects = {
        name: alone(criterion, logits, target, features)
        for name, criterion in able.items()
        if name not in failed
    }
    peaks = {name: peak_bytes(subject.call, device) for name, subject in subjects.items()}
    subjects[COPY] = copies(COPY, [features])
    calls = in_turns(subjects, device, PLANS["full" if full else "quick"])
    floor, least = calls.pop(COPY), case.least_bytes(features.dtype)
    rows = {}
    for direction in DIRECTIONS:
        timed = {name: by_direction[direction] for name, by_direction in calls.items()}
        for name in timed:
            row = facts(timed[name]) | {"N": case.N, "D": case.D, "C": case.C}
            row |= {"dtype": "float32", "speedup": speedups(name, timed)}
            row["added_percent"] = added_percent(timed[name], timed[CROSS_ENTROPY])
            row |= bandwidth(timed[name], floor[direction], least[direction])
            if direction == "both":
                row["peak_bytes"] = peaks[name]
            rows[name, direction] = timed[name].all, row
    return Group(rows, skipped, failed)


def added_percent(calls: Calls, base: Calls, whole: Calls | None = None) -> dict[str, float]:
    """(calls - base) / whole in percent, round by round; `whole` is base if not given."""
    rounds = zip(calls.medians, base.medians, (whole or base).medians, strict=True)
    low, middle, high = percentiles([100 * (a - b) / c for a, b, c in rounds])
    return {"median": middle, "p20": low, "p80": high}
