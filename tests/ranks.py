"""The functions that tests with several processes run in each of them (gloo, CPU)."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cases import RELEASE, soft_labels
from discfused import FusedDiscLoss, RunningDiscLoss, disc_terms, fused_disc_loss
from models import Net

BATCHES = [4, 0, 9, 3]  # rows of each process
LIMIT = 120  # seconds: a collective that not all reach waits for ever
CLOSE = {"rtol": 0, "atol": 1e-12}


def run(function: Callable[[int], None], processes: int, folder: Path) -> None:
    """Runs function(rank) in several processes of one group. Fails if one fails or hangs."""
    arguments = function, processes, str(folder / "store")
    context = mp.spawn(_process, arguments, processes, join=False)
    end = time.monotonic() + LIMIT
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{function.__name__} hangs")


def _process(rank: int, function: Callable[[int], None], processes: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = dist.FileStore(store, processes)
    kinds = "cpu:gloo,cuda:nccl" if torch.cuda.device_count() >= processes else "gloo"
    dist.init_process_group(kinds, store=store, rank=rank, world_size=processes)
    function(rank)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # without Python's shutdown: see test_distributed.start


def own(rank: int) -> slice:
    """The rows of one process."""
    return slice(sum(BATCHES[:rank]), sum(BATCHES[: rank + 1]))


def mean(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    value = value.detach().clone()
    dist.all_reduce(value, group=group)
    return value / dist.get_world_size(group)


def losses(backend: str, C: int) -> Iterator[Callable[..., Tensor]]:
    """Each term and the whole loss, of logits, features, target, sample weights and keywords."""
    for options in (
        {},
        {"impurity": "collision", "prior": "uniform"},
        {"prior": torch.rand(C) + 0.1, "activation": "relu"},
    ):
        for term in range(2):
            yield lambda z, x, y, s, term=term, options=options, **group: disc_terms(
                [x, x.square()], y, C, sample_weight=s, backend=backend, **options, **group
            )[term]
        for reduction in ("mean", "sum"):
            yield lambda z, x, y, s, reduction=reduction, options=options, **group: fused_disc_loss(
                z, y, x, sample_weight=s, backend=backend, reduction=reduction,
                weight=torch.arange(1, C + 1), label_smoothing=0.1, **options, **group,
            )  # fmt: skip


def one_batch(rank: int) -> None:
    """The mean over 1 to 4 processes of value and gradient of every loss equals that of one process
    with all rows. One batch is empty, and with C = 40 most classes are absent."""
    for W in range(1, len(BATCHES) + 1):
        group = dist.new_group(range(W))
        if rank >= W:
            continue
        torch.manual_seed(W)
        N, D = sum(BATCHES[:W]), 6
        for C in (3, 40):
            x = torch.randn(N, D, dtype=torch.float64)
            s = torch.rand(N, dtype=torch.float64)
            hard = torch.randint(0, C, (N,))
            hard[::5] = -100
            net = nn.Linear(D, D).double()
            head = nn.Linear(D, C).double()
            parameters = [*net.parameters(), *head.parameters()]
            for y in (hard, soft_labels(N, C)):
                for backend in ("reference", "cpu"):
                    for loss in losses(backend, C):
                        f = net(x)
                        expected = loss(head(f), f, y, s)
                        wanted = torch.autograd.grad(expected, parameters, materialize_grads=True)
                        rows = own(rank)
                        f = net(x[rows])
                        part = loss(head(f), f, y[rows], s[rows], process_group=group)
                        torch.testing.assert_close(mean(part, group), expected.detach(), **CLOSE)
                        got = torch.autograd.grad(part, parameters, materialize_grads=True)
                        for g, w in zip(got, wanted, strict=True):
                            torch.testing.assert_close(mean(g, group), w, **CLOSE)


def on_gpus(rank: int) -> None:
    """As one_batch, with one GPU per process."""
    torch.cuda.set_device(rank)
    N, rows = sum(BATCHES[: dist.get_world_size()]), own(rank)
    x = torch.randn(N, 6, dtype=torch.float64).cuda().requires_grad_()
    z, y = x[:, :3].detach(), (torch.arange(N) % 3).cuda()
    for backend in ("triton", "cuda"):
        whole = fused_disc_loss(z, y, x, backend=backend)
        part = fused_disc_loss(z[rows], y[rows], x[rows], process_group="world", backend=backend)
        torch.testing.assert_close(mean(part), whole.detach(), **CLOSE)
        (wanted,), (got,) = (torch.autograd.grad(value, x) for value in (whole, part))
        torch.testing.assert_close(mean(got), wanted, **CLOSE)


def trained(criterion: FusedDiscLoss, model: nn.Module, rows: slice) -> list[Tensor]:
    """The gradients of one step of a model, wrapped or not."""
    x, y = images()
    model.zero_grad()
    criterion(model(x[rows]), y[rows]).backward()
    return [p.grad for p in model.parameters()]


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    N = sum(BATCHES[: dist.get_world_size()])
    x = torch.randn(N, 3, 8, 8, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 4, (len(x),), generator=generator)


def compiled_group(rank: int) -> None:
    """torch.compile makes one graph for all batch sizes of a loss with a ProcessGroup."""
    group = dist.new_group(range(dist.get_world_size()))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return fused_disc_loss(z, y, x, process_group=group)

    for N in (5, 9 + rank, 12 - rank):
        x, z, y = torch.randn(N, 6), torch.randn(N, 3), torch.randint(0, 3, (N,))
        x.requires_grad_()
        loss = compiled(z, y, x)
        expected = fused_disc_loss(z, y, x, process_group=group)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, x) for v in (loss, expected)))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs <= 2, graphs


def same(got: list[Tensor], wanted: list[Tensor]) -> None:
    for g, w in zip(got, wanted, strict=True):
        g = g.full_tensor() if hasattr(g, "full_tensor") else g
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


def wrapped(rank: int) -> None:
    """An attached model in DistributedDataParallel, also compiled, and in FSDP2."""
    model = Net().double()
    criterion = FusedDiscLoss.attach(model)
    wanted = [g.clone() for g in trained(criterion, model, slice(None))]
    criterion.process_group = "world"
    ddp = nn.parallel.DistributedDataParallel(model)
    same(trained(criterion, ddp, own(rank)), wanted)
    same(trained(torch.compile(criterion, backend="aot_eager"), ddp, own(rank)), wanted)
    same(trained(criterion, torch.compile(ddp, backend="aot_eager"), own(rank)), wanted)

    if RELEASE < (2, 7):
        return  # FSDP2 there needs a GPU
    from torch.distributed.fsdp import fully_shard

    model = Net().double()
    criterion = FusedDiscLoss.attach(model)
    wanted = [g.clone() for g in trained(criterion, model, slice(None))]
    criterion.process_group = "world"
    fully_shard(model.blocks)
    same(trained(criterion, fully_shard(model), own(rank)), wanted)


class Collectives(TorchDispatchMode):
    """Counts collectives."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace in ("c10d", "_c10d_functional")
        return func(*args, **(kwargs or {}))


def collectives(rank: int) -> None:
    """One collective per forward pass; none in backward, in evaluation and without gradients, so
    one process can then continue alone."""
    x, y = images()
    features = x.flatten(1)[:, :5].requires_grad_()
    logits = x.flatten(1)[:, 5:9].requires_grad_()
    criterion = FusedDiscLoss(process_group="world")

    def count(function: Callable) -> int:
        with Collectives() as mode:
            result = function()
        assert result is None or result.isfinite()
        return mode.count

    loss = criterion(logits, y, features)
    assert count(lambda: criterion(logits, y, [features, features.square()])) == 1
    assert count(lambda: disc_terms(features, y, 4, process_group="world").kl) == 1
    assert count(lambda: loss.backward()) == 0
    assert count(lambda: FusedDiscLoss()(logits, y, features)) == 0
    dist.barrier()
    if rank == 0:
        expected = FusedDiscLoss()(logits, y, features)
        assert count(lambda: criterion.eval()(logits, y, features)) == 0
        criterion.train()
        with torch.no_grad():
            assert count(lambda: criterion(logits, y, features)) == 0
            assert criterion(logits, y, features) == expected
        with torch.inference_mode():
            assert count(lambda: criterion(logits, y, features)) == 0


class Step(nn.Module):
    """A module that contains its criterion, as a LightningModule does."""

    def __init__(self):
        super().__init__()
        self.net, self.head = nn.Linear(5, 6), nn.Linear(6, 4)
        self.register_buffer("counter", torch.zeros(1))
        self.criterion = RunningDiscLoss(momentum=0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        features = self.net(x)
        return self.criterion(self.head(features), y, features)


def running(rank: int) -> None:
    """Each process keeps its own sums, because buffers are broadcast and the sums are not. Two
    forward passes and one backward work. A restart continues with the saved sums."""
    x, y = torch.randn(2, 12, 5), torch.randint(0, 4, (2, 12))
    x, y = x + rank, (y + rank) % 4
    step = Step()
    alone = Step()
    alone.load_state_dict(step.state_dict())
    ddp = nn.parallel.DistributedDataParallel(step)
    (ddp(x[0], y[0]) + ddp(x[1], y[1])).backward()
    alone(x[0], y[0]), alone(x[1], y[1])
    for got, expected in zip(
        step.criterion.sums._tensors(), alone.criterion.sums._tensors(), strict=True
    ):
        torch.testing.assert_close(got, expected)
    resumed = Step()
    resumed.load_state_dict(step.state_dict())
    assert resumed(x[0], y[0]) == step(x[0], y[0])
    assert resumed.criterion.sums is not step.criterion.sums


def collectives_and_running_sums(rank: int) -> None:
    collectives(rank)
    dist.barrier()
    running(rank)


def metric(rank: int) -> None:
    """The metric of batches in several processes, one without a batch, equals that of all rows in
    one process, also after a further batch."""
    from discfused.metrics import FeatureDiscriminability, feature_discriminability

    x, y = torch.randn(16, 6).relu(), torch.randint(0, 4, (16,))
    own_metric = FeatureDiscriminability(4, 6)
    for rows in (own(rank), slice(None)):
        if len(x[rows]):
            own_metric.update(x[rows], y[rows])
        got = own_metric.compute()
        more = 0 if rows == own(rank) else dist.get_world_size()
        n = sum(BATCHES[: dist.get_world_size()])
        expected = feature_discriminability(
            torch.cat([x[:n], *[x] * more]), torch.cat([y[:n], *[y] * more]), 4
        )
        for name, value in expected._asdict().items():
            torch.testing.assert_close(getattr(got, name), value, rtol=1e-5, atol=1e-6)
    if rank == 0:  # a report covers only its own process, without a collective
        from discfused import report

        x, y = images()
        assert report(Net().double(), [(x, y)]).runs[0].samples == len(y)
