"""What is measured on a GPU alone: the time of the device without the host's, beside wall time and
never instead of it; and the training step of a network."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.cases import Case
from benchmarks.competitors import Loss
from benchmarks.timing import Subject, percentiles

REPLAYS = 50


def in_graphs(subject: Subject, count: int) -> dict[str, list[float]]:
    """direction -> 20, 50, 80 percentiles in seconds. So many calls make one CUDA graph, which
    keeps the gaps between launches small, and the inputs out of the cache."""
    times = {}
    for direction, function in (("forward", subject.forward), ("both", subject.call)):
        try:
            times[direction] = _replays(function, count)
        except RuntimeError as error:  # as for a call that waits for the host
            warnings.warn(f"not captured in a CUDA graph: {error}", stacklevel=2)
    return times


def _replays(function: Callable[[], Any], count: int) -> list[float]:
    """Of one of the calls in a CUDA graph of so many."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as the documentation asks: warm up on a side stream
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            function()
    graph.replay()
    torch.cuda.synchronize()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPLAYS)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return percentiles([start.elapsed_time(end) / 1e3 / count for start, end in events])


def training_step(
    case: Case, device: str, model: nn.Module | None = None, pixels: int = 224
) -> Callable[[Loss], Subject]:
    """loss -> a step with it: bfloat16 autocast, SGD with momentum. All of one network, whose last
    layer is called `fc`: torchvision's ResNet-50, if none is given."""
    if model is None:
        from torchvision.models import resnet50

        model = resnet50(num_classes=case.C)
    model = model.to(device, memory_format=torch.channels_last)
    images = torch.randn(case.N, 3, pixels, pixels, device=device)
    images = images.to(memory_format=torch.channels_last)
    y = torch.randint(0, case.C, (case.N,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    features = []
    model.fc.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))

    def with_loss(loss: Loss) -> Subject:
        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.bfloat16):
                logits = model(images)
            loss(y, features.pop(), logits.float()).backward()
            optimizer.step()

        return Subject(step, lambda state: None)

    return with_loss
