"""The processes of a run, and how they agree on what to do."""

import os
from typing import Any, cast

from lightning.fabric import Fabric

from discfused.recipes.options import Options


def launch(options: Options) -> Fabric:
    """Devices and processes; torchrun's environment says how many."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator=options.train.accelerator,
        strategy="ddp" if world_size > 1 else "auto",
        devices=local,
        num_nodes=world_size // local,
        precision=cast(Any, options.train.precision),
    )
    fabric.launch()
    return fabric


def agreed(fabric: Fabric, outcome: dict[str, Any] | Exception | None) -> dict[str, Any] | None:
    """Rank 0's outcome in every process: returned, or raised."""
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
