"""What torch.compile does not look into. Imported only while it compiles: loads torch._dynamo."""

from collections.abc import Callable
from typing import Any

import torch

_WHY = (
    "the first forward pass with a FeatureTap is looked at to find what feeds the classifier, and "
    "must not be compiled: run it under torch.compiler.set_stance('force_eager'), attach to the "
    "compiled model, or name the layers, attach(model, layers=...)"
)


def _break_graph(function: Callable[..., Any]) -> Any:
    """With fullgraph=True this is an error; it says why where PyTorch takes a reason."""
    try:
        return torch.compiler.disable(function, reason=_WHY)
    except TypeError:
        return torch.compiler.disable(function)


@_break_graph
def take(tap: Any, output: Any) -> Any:
    return tap._take(output)


@_break_graph
def refuse() -> None:
    raise RuntimeError(_WHY)
