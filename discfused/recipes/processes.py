"""The processes of a run, and how they agree on a result."""

import os
from typing import Any, cast

from lightning.fabric import Fabric

from discfused import backends
from discfused.recipes.options import Options


def launch(options: Options) -> Fabric:
    """Starts Fabric with the number of processes in torchrun's environment.

    Raises:
        ValueError: the accelerator is not there, or the backend cannot run on it.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        fabric = Fabric(
            accelerator=options.train.accelerator,
            strategy="ddp" if world_size > 1 else "auto",
            devices=local,
            num_nodes=world_size // local,
            precision=cast(Any, options.train.precision),
        )
    except RuntimeError as error:
        raise ValueError(f"train.accelerator is {options.train.accelerator!r}, but PyTorch has "
                         f"none here, expected auto or cpu: {error}") from error  # fmt: skip
    try:
        backends.resolve(fabric.device.type, options.loss.backend)
    except RuntimeError as error:  # its other lines report on all backends, as doctor does
        raise ValueError(str(error).partition("\n")[0]) from error
    fabric.launch()
    return fabric


def agreed(fabric: Fabric, outcome: dict[str, Any] | Exception | None) -> dict[str, Any] | None:
    """Returns rank 0's outcome in every process, or raises it."""
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
