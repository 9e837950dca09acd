"""Optimizers, and what changes over the steps of a run: the learning rate, the terms' weights."""

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
               weight_decay=train.weight_decay, nesterov=train.momentum > 0)  # fmt: skip


def schedule(optimizer: Optimizer, train: Train, steps: int) -> LRScheduler:
    """One step of it for every step of the optimizer."""
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
        return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2

    return LambdaLR(optimizer, share)


def term_weights(loss: Loss, step: int, steps: int) -> tuple[float, float]:
    """(gini_weight, kl_weight) at a step: those of the terms that the loss names, by schedule."""
    share = {
        "constant": 1.0,
        "warmup": min(1.0, step / (loss.ramp * steps)) if loss.ramp else 1.0,
        "second-half": float(2 * step >= steps),
    }[loss.schedule]
    terms = loss.name.split("+")
    return (
        share * loss.gini_weight if "gini" in terms else 0.0,
        share * loss.kl_weight if "kl" in terms else 0.0,
    )
