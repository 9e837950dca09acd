"""A training step with every loss: the overhead over cross-entropy.

The difference of two steps drowns in their noise where the loss is small, so the losses are also
timed alone, at the step's shapes and in the same rounds, and given as a share of the step.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import TRAINING_PLANS, Case, Training
from benchmarks.competitors import COPY, backend_of
from benchmarks.groups import Group, bandwidth, copies, facts, speedups
from benchmarks.losses import (
    CROSS_ENTROPY,
    Criterion,
    added_percent,
    alone,
    criteria,
    cross_entropy,
    wrong,
)
from benchmarks.memory import peak_bytes
from benchmarks.models import ResNet, training_batch
from benchmarks.timing import Subject, in_turns
from discfused import FusedDiscLoss

STEP, LOSS = DIRECTIONS = ("step", "loss")


def measure_training(training: Training, device: str, full: bool) -> Group:
    torch.manual_seed(0)
    model = ResNet(training.depth, training.classes, training.pixels).to(device)
    images, target = (
        tensor.to(device)
        for tensor in training_batch(training.batch, training.pixels, training.classes)
    )
    if device == "cuda":
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)

    probe = copy.deepcopy(model)
    features = _inputs_of_head(probe)
    with torch.no_grad(), _autocast(training, device):
        logits = probe(images)
    shapes = logits, target, features()
    del probe
    case = Case(training.name, training.batch, shapes[2].shape[1], training.classes)
    able, skipped = criteria(device, case)
    failed = wrong(able, *shapes)
    subjects = {}
    for name, criterion in able.items():
        if name not in failed:
            step = _step(name, criterion, copy.deepcopy(model), images, target, training, device)
            subjects[name, STEP] = Subject(step, lambda state: None)
            subjects[name, LOSS] = alone(criterion, *shapes)

    peaks = {at: peak_bytes(subject.call, device) for at, subject in subjects.items()}
    subjects[COPY, LOSS] = copies(COPY, [shapes[2]])
    calls = in_turns(subjects, device, TRAINING_PLANS["full" if full else "quick"])
    del subjects[COPY, LOSS]
    floor, least = calls[COPY, LOSS]["both"], case.least_bytes(shapes[2].dtype)["both"]
    rows = {}
    base = calls[CROSS_ENTROPY, STEP]["both"]
    for part in DIRECTIONS:
        timed = {name: calls[name, part]["both"] for name, at in subjects if at == part}
        for name in timed:
            row = facts(timed[name]) | {"N": case.N, "D": case.D, "C": case.C}
            row["dtype"] = "bfloat16" if training.autocast else "float32"
            row["speedup"] = speedups(name, timed)
            # of the step with cross-entropy, also for the loss alone
            row["added_percent"] = added_percent(timed[name], timed[CROSS_ENTROPY], base)
            row["peak_bytes"] = peaks[name, part]
            if part == LOSS:  # the least bytes of a step are those of the network
                row |= bandwidth(timed[name], floor, least)
            rows[name, part] = timed[name].all, row
    return Group(rows, skipped, failed)


def _autocast(training: Training, device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=training.autocast)


def _inputs_of_head(model: nn.Module) -> Callable[[], Tensor]:
    """What one would write without a FeatureTap: a hook that keeps the features."""
    kept = []
    model.head.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    return kept.pop


def _step(
    name: str,
    criterion: Criterion,
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    training: Training,
    device: str,
) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if name == CROSS_ENTROPY:
        loss_of = cross_entropy
    elif backend_of(name) is not None:
        loss_of = FusedDiscLoss.attach(model, backend=backend_of(name))
    else:
        features = _inputs_of_head(model)

        def loss_of(logits: Tensor, target: Tensor) -> Tensor:
            return criterion(logits, target, features())

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(training, device):
            logits = model(images)
        loss_of(logits, target).backward()
        optimizer.step()

    return step
