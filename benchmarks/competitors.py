"""Who is measured: plain PyTorch, torch.compile, every backend of discfused, and the floor.

A plain form is a function `terms(x, y, C, impurity)` -> impurity term, kl, with the other options
at their defaults, differentiable in x [N, D]; y [N] are class indices.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case
from discfused import backends, disc_terms, fused_disc_loss, reference
from discfused._definitions import PROBABILITY_FLOOR, accumulation_dtype
from discfused.functional import GINI_WEIGHT, KL_WEIGHT

Terms = Callable[[Tensor, Tensor, int, str], tuple[Tensor, Tensor]]
Loss = Callable[..., Tensor]  # (y, x), or (y, x, logits)

# Plain PyTorch as one would write it for speed: float32 sums, no pass over [C, D] that a product
# with a vector can replace. On the CPU this beats writing P = H / T out by up to a half.


def plain_terms(H: Tensor, sizes: Tensor, impurity: str) -> tuple[Tensor, Tensor]:
    """The terms from the class means H [C, D] and the sizes [C] of the classes."""
    T = H.sum(0)
    live = T > 0
    inverse = 1 / T.clamp(min=1e-12)
    squares = H.square().sum(0) * inverse.square()
    if impurity == "gini":
        term = 1 - squares.mean()
    else:
        entropy = -torch.where(live, squares, 1).log() / (sizes > 0).sum().log()
        term = torch.where(live, entropy, 1).mean()
    q = H @ inverse / live.sum()
    pi = sizes / sizes.sum()
    return term, F.kl_div(q.clamp(min=PROBABILITY_FLOOR).log(), pi, reduction="sum")


def index_add(x: Tensor, y: Tensor, C: int, impurity: str) -> tuple[Tensor, Tensor]:
    a = x.float().abs()  # half precision sums would be off by percents
    # bincount would synchronise a GPU.
    sizes = torch.zeros(C, device=y.device).index_add(0, y, torch.ones(y.shape, device=y.device))
    sums = a.new_zeros(C, x.shape[1]).index_add_(0, y, a)
    return plain_terms(sums / sizes.clamp(min=1).unsqueeze(1), sizes, impurity)


def one_hot(x: Tensor, y: Tensor, C: int, impurity: str) -> tuple[Tensor, Tensor]:
    m = F.one_hot(y, C).float()
    sizes = m.sum(0)
    return plain_terms((m / sizes.clamp(min=1)).T @ x.float().abs(), sizes, impurity)


def unique(x: Tensor, y: Tensor, C: int, impurity: str) -> tuple[Tensor, Tensor]:
    """For C > N: absent classes add nothing to the terms with the batch's prior."""
    present, slot = y.unique(return_inverse=True)
    return index_add(x, slot, len(present), impurity)


def embedding_bag(x: Tensor, y: Tensor, C: int, impurity: str) -> tuple[Tensor, Tensor]:
    """A class that is present is a bag of rows."""
    y, order = y.sort()
    _, sizes = y.unique_consecutive(return_counts=True)
    H = F.embedding_bag(order, x.float().abs(), sizes.cumsum(0) - sizes, mode="mean")
    return plain_terms(H, sizes.float(), impurity)


def as_specified(x: Tensor, y: Tensor, C: int, impurity: str) -> tuple[Tensor, Tensor]:
    m = reference.membership(y, None, C, -100, accumulation_dtype(x.dtype))
    return reference.disc_terms(x, m, None, "abs", impurity)


COPY = "copy"  # into memory that is there: the floor
CROSS_ENTROPY = "cross_entropy"
COMPILED = "compiled-"
WAITING = "unique", "embedding_bag"  # for the host, so no CUDA graph can hold them
FUSED_PREFIX = "discfused-"
PLAIN: dict[str, Terms] = {
    "index_add": index_add,
    "one_hot": one_hot,
    "unique": unique,
    "embedding_bag": embedding_bag,
    "reference": as_specified,
    COMPILED + "index_add": index_add,
    COMPILED + "reference": as_specified,
}
FUSED = [FUSED_PREFIX + name for name in backends.NAMES if name != "reference"]


def names(case: Case) -> list[str]:
    if case.kind == "terms":
        return [COPY, *PLAIN, *FUSED]
    return [CROSS_ENTROPY, "index_add", *FUSED]


def why_not(name: str, device: str, case: Case, compiles: bool) -> str | None:
    """None if this competitor can take part, else the reason."""
    if case.kind == "step" and find_spec("torchvision") is None:
        return "torchvision is not installed: it has the network"
    if name in FUSED:
        backend = name.removeprefix(FUSED_PREFIX)
        try:
            backends.resolve(device, backend)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        if device == "cpu" and backend == "triton":
            return "under Triton's interpreter, whose time says nothing"
    if name == "unique" and case.C <= case.N:
        return "C <= N: close to index_add"
    if name.startswith(COMPILED) and not compiles:
        return "the quick mode compiles for its first case alone"
    return None


def loss_of(name: str, case: Case) -> Loss:
    """What is timed, and differentiated: (y, x) -> gini + kl, or (y, x, logits) -> loss."""
    C, impurity = case.C, case.impurity
    if name == CROSS_ENTROPY:
        return lambda y, x, logits: F.cross_entropy(logits, y)
    if name in FUSED:
        options = {"impurity": impurity, "backend": name.removeprefix(FUSED_PREFIX)}
        if case.kind != "terms":
            return lambda y, x, logits: fused_disc_loss(logits, y, x, **options)

        def fused(y: Tensor, x: Tensor) -> Tensor:
            gini, kl = disc_terms(x, y, C, **options)
            return gini + kl

        return fused
    terms = PLAIN[name]

    def plain(y: Tensor, x: Tensor, logits: Tensor | None = None) -> Tensor:
        gini, kl = terms(x, y, C, impurity)
        if logits is None:
            return gini + kl
        return F.cross_entropy(logits, y) + GINI_WEIGHT * gini + KL_WEIGHT * kl

    if name.startswith(COMPILED):
        return torch.compile(plain, dynamic=False, fullgraph=True)
    return plain
