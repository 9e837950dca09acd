"""Compiling ahead of the first step."""

from collections.abc import Iterable

import torch

from discfused import backends
from discfused.backends.contract import Labels, Pull, accumulation_dtype


def warmup(
    shapes: Iterable[tuple[int, int]],
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    num_classes: int = 1000,
    device: torch.device | str = "cuda",
    *,
    activation: str = "relu",
    center: bool = True,
    kl_direction: str = "forward",
    weight: bool = False,
    sample_weight: bool = False,
) -> None:
    """Compile the kernels of the Triton backend before training, for features of these shapes.

    Triton compiles a kernel when it first runs, which takes a second or two each, and keeps it on
    disk (TRITON_CACHE_DIR; put it on a disk of the node's own). One run forward and back on random
    numbers does that here, for each shape and dtype; nothing is timed or chosen, so all processes
    of a group end up with the same kernels. Kernels do not depend on the exact N and C: a shape
    stands for all batches of its order of size with the same D.

    Args:
        shapes: [(N, D), ...] of contiguous features.
        dtypes: of the features.
        num_classes: C.
        device: where to compile and run.
        activation, center, kl_direction: as in `disc_terms`.
        weight, sample_weight: whether there will be class weights and sample weights.

    Raises:
        RuntimeError: the Triton backend cannot run on such a device.
    """
    device = torch.device(device)
    backend = backends.get(backends.resolve(device.type, "triton"))
    for N, D in shapes:
        for dtype in dtypes:
            acc = accumulation_dtype(dtype)
            labels = Labels(
                torch.randint(0, num_classes, (N,), device=device),
                torch.ones(num_classes, dtype=acc, device=device) if weight else None,
                torch.ones(N, dtype=acc, device=device) if sample_weight else None,
                num_classes,
                -100,
            )
            features = torch.randn(N, D, device=device).to(dtype)
            slots = min(N, num_classes)
            slope = center and backend.keeps_slope(features, num_classes)
            members = backend.members(labels, slots, features, activation)
            for keep in sorted({False, slope}):  # evaluation keeps none, the last is for gradient
                histogram = backend.histogram(features, members, activation, center, slope=keep)
                terms = backend.terms(
                    histogram, members.share, None, kl_direction == "reverse", 1e-6, 1.0, 1.0
                )
            one = torch.ones((), dtype=acc, device=device)
            pull = Pull(terms.feature_coef, terms.slot_coef, one, one, 1.0, 1.0, slope)
            mean, table = histogram[:2]
            backend.gradient(features, members, mean, table, activation, pull)
