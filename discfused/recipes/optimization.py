"""Optimizers, learning rate schedules, and the schedule of the terms' weights."""

import math

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from discfused.recipes.options import Loss, Train

FEWEST_ONE_CYCLE_STEPS = 4


def optimizer(model: nn.Module, train: Train) -> Optimizer:
    if train.optimizer == "adamw":
        return AdamW(model.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    return SGD(model.parameters(), lr=train.lr, momentum=train.momentum,
               weight_decay=train.weight_decay)  # fmt: skip


def schedule(optimizer: Optimizer, train: Train, steps: int, per_epoch: int) -> LRScheduler:
    """The learning rate schedule, with one step per optimizer step."""
    if train.lr_schedule == "one-cycle":
        if steps < FEWEST_ONE_CYCLE_STEPS:
            raise ValueError(f"train.lr_schedule is one-cycle for a run of {steps} steps, expected "
                             f"at least {FEWEST_ONE_CYCLE_STEPS}: use cosine")  # fmt: skip
        rising = min(max(train.lr_warmup, 2 / steps), 0.99)
        cycle = train.momentum > 0 or train.optimizer == "adamw"
        return OneCycleLR(
            optimizer, train.lr, total_steps=steps, pct_start=rising, cycle_momentum=cycle
        )
    warmup = round(train.lr_warmup * steps) if train.lr_schedule == "cosine" else 0

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if train.lr_schedule == "constant":
            return 1.0
        if train.lr_schedule == "step":
            return train.lr_factor ** sum(
                step >= per_epoch * epoch for epoch in train.lr_steps or ()
            )
        return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2

    return LambdaLR(optimizer, share)


def term_weights(loss: Loss, step: int, steps: int, per_epoch: int) -> tuple[float, float]:
    """(gini_weight, kl_weight) at a step; 0 for terms that are not in the loss.

    Before `start` both are 0. They rise linearly over the `ramp`.
    """
    begin = loss.start * (steps if loss.start < 1 else per_epoch)
    share = float(step >= begin)
    if loss.ramp:
        share = min(1.0, max(0.0, step - begin) / (loss.ramp * steps))
    terms = loss.name.split("+")
    return (
        share * loss.gini_weight if "gini" in terms else 0.0,
        share * loss.kl_weight if "kl" in terms else 0.0,
    )
