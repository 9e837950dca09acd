"""Compiling ahead of the first step."""

from collections.abc import Iterable
from typing import Any

import torch

from discfused import _inputs, backends
from discfused._definitions import ACTIVATIONS, IMPURITIES, accumulation_dtype


def warmup(
    shapes: Iterable[tuple[int, int]],
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    num_classes: int = 1000,
    device: torch.device | str = "cuda",
    *,
    activation: str = "abs",
    impurity: str = "gini",
    sample_weight: bool = False,
) -> None:
    """Compile the kernels of the Triton backend before training, for features of these shapes.

    Triton compiles a kernel when it first runs, which takes a second or two each, and keeps it on
    disk (TRITON_CACHE_DIR: choose a disk of this machine). This function runs forward and backward
    once on random numbers, for each shape and dtype. Nothing is timed, so all processes of a group
    get the same kernels. They do not depend on the exact N and C: a shape stands for all batches of
    similar size with the same D. The kernels for class probabilities are left out.

    Args:
        shapes: [(N, D), ...] of contiguous features.
        dtypes: of the features.
        num_classes: C.
        device: where to compile and run.
        activation, impurity: as in `disc_terms`.
        sample_weight: whether there will be sample weights.

    Raises:
        ValueError: no such activation or impurity.
        RuntimeError: the Triton backend cannot run on such a device.
    """
    act = ACTIVATIONS.index(_inputs.one_of("activation", activation, ACTIVATIONS))
    measure = IMPURITIES.index(_inputs.one_of("impurity", impurity, IMPURITIES))
    device = torch.device(device)
    backend: Any = backends.get(backends.resolve(device.type, "triton"))
    for N, D in shapes:
        target = torch.randint(0, num_classes, (N,), device=device)
        for dtype in dtypes:
            acc = accumulation_dtype(dtype)
            weights = torch.ones(N, dtype=acc, device=device) if sample_weight else None
            features = torch.randn(N, D, device=device).to(dtype)
            rows = backend.rows(target, weights, num_classes, -100, acc)
            *_, kept = backend.terms(features, rows, num_classes, None, act, measure, 1.0, 1.0)
            one = torch.ones((), dtype=acc, device=device)
            backend.gradient(features, rows, kept, one, None, None, act, 1.0, 1.0)
