"""What torch.compile does not look into. Imported only while it compiles: loads torch._dynamo."""

from collections.abc import Callable
from typing import Any

import torch


def _left_alone(function: Callable) -> Callable:
    """Breaks the graph. With fullgraph=True this is an error that says why, but for PyTorch 2.6."""
    why = (
        "discfused records the first forward pass to find what feeds the classifier: run the model "
        "once before it is compiled with fullgraph=True, or name the layers, "
        "FusedDiscLoss.attach(model, layers=...)"
    )
    try:
        return torch.compiler.disable(function, reason=why)
    except TypeError:
        return torch.compiler.disable(function)


@_left_alone
def take(tap: Any, output: Any) -> Any:
    return tap._take(output)


@_left_alone
def enter(recorder: Any, *arguments: Any) -> None:
    recorder._enter(*arguments, True)
