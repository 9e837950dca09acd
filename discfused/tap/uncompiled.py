"""Functions that torch.compile does not trace. The import loads torch._dynamo, so it is lazy."""

from collections.abc import Callable
from typing import Any

import torch

_WHY = (
    "a FeatureTap records the first forward pass to find the input of the classifier, so this pass "
    "must not be compiled: run it under torch.compiler.set_stance('force_eager'), attach to the "
    "compiled model, or name the layers, attach(model, layers=...)"
)


def _break_graph(function: Callable[..., Any]) -> Any:
    """With fullgraph=True this is an error. It shows the reason if PyTorch supports it."""
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
