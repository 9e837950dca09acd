"""Who is measured: plain PyTorch, torch.compile, every backend of discfused, and the floor.

A competitor is a function `terms(x, y, C)` -> gini, kl with the default options (the paper's),
differentiable in x [N, D]; y [N] are class indices.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case
from discfused import backends, disc_terms, reference
from discfused._definitions import PROBABILITY_FLOOR, accumulation_dtype

Terms = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor, int], Tensor]


class Competitor(NamedTuple):
    name: str
    terms: Terms | None  # None for the floor, which computes nothing
    compiled: bool = False
    in_graphs: bool = True  # does not synchronise, so a CUDA graph can hold it


def summed(terms: Terms) -> Loss:
    def loss(x: Tensor, y: Tensor, C: int) -> Tensor:
        gini, kl = terms(x, y, C)
        return gini + kl

    return loss


# Plain PyTorch as one would write it for speed: float32 sums, no pass over [C, D] that a product
# with a vector can replace. On the CPU this beats writing P = table / total out by up to a half.


def plain_terms(sums: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """gini and kl from the sums [C, D] of activations and the sizes [C] of the classes."""
    table = sums / sizes.clamp(min=1).unsqueeze(1)
    total = table.sum(0)
    live = total > 0
    inverse = torch.where(live, 1 / total, 0)
    gini = 1 - (table.square().sum(0) * inverse.square()).mean()
    q = table @ inverse / live.sum()
    pi = sizes / sizes.sum()
    return gini, F.kl_div(q.clamp(min=PROBABILITY_FLOOR).log(), pi, reduction="sum")


def _sizes(y: Tensor, C: int) -> Tensor:
    # bincount would synchronise a GPU.
    return torch.zeros(C, device=y.device).index_add(0, y, torch.ones(y.shape, device=y.device))


def index_add(x: Tensor, y: Tensor, C: int) -> tuple[Tensor, Tensor]:
    a = x.float().abs()  # half precision sums would be off by percents
    return plain_terms(a.new_zeros(C, x.shape[1]).index_add_(0, y, a), _sizes(y, C))


def one_hot(x: Tensor, y: Tensor, C: int) -> tuple[Tensor, Tensor]:
    m = F.one_hot(y, C).float()
    return plain_terms(m.T @ x.float().abs(), m.sum(0))


def index_add_present(x: Tensor, y: Tensor, C: int) -> tuple[Tensor, Tensor]:
    """For C > N: absent classes add nothing to gini, nor to KL with the batch's prior."""
    present, slot = y.unique(return_inverse=True)
    return index_add(x, slot, len(present))


def written_as_specified(x: Tensor, y: Tensor, C: int) -> tuple[Tensor, Tensor]:
    m = reference.membership(y, None, C, -100, accumulation_dtype(x.dtype))
    return reference.disc_terms(x, m, None, "abs", "gini")


def by_discfused(backend: str) -> Terms:
    return lambda x, y, C: disc_terms(x, y, C, backend=backend)


COPY = "copy"  # into memory that is there: the floor
PLAIN = [Competitor("eager-index_add", index_add), Competitor("eager-one_hot", one_hot)]
COMPETITORS = {
    competitor.name: competitor
    for competitor in [
        Competitor(COPY, None),
        # Backward's result is new memory, which on a CPU the system may hand out page by page.
        Competitor("copy-fresh", None),
        *PLAIN,
        Competitor("eager-present", index_add_present, in_graphs=False),
        Competitor("compile-reference", written_as_specified, compiled=True),
        Competitor("compile-index_add", index_add, compiled=True),
        *(Competitor(f"discfused-{name}", by_discfused(name)) for name in backends.NAMES),
    ]
}
FUSED = [f"discfused-{name}" for name in backends.NAMES if name != "reference"]
BEST_PLAIN = [competitor.name for competitor in PLAIN]  # what the goals are measured against


def backend_of(name: str) -> str | None:
    return name.removeprefix("discfused-") if name.startswith("discfused-") else None


def why_not(name: str, device: str, case: Case, full: bool) -> str | None:
    """None if this competitor can take part, else the reason."""
    backend = backend_of(name)
    if backend is not None:
        try:
            backends.resolve(device, backend)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        if device == "cpu" and backend == "triton":
            return "under Triton's interpreter, whose time says nothing"
    if name == "eager-present" and case.C <= case.N:
        return f"C <= N: the same as {PLAIN[0].name}"
    if name == "compile-index_add" and not full:
        return "only with --full: it takes long to compile"
    return None
