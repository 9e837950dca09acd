"""Small models for the tests of taps."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASSES = 5


class Net(nn.Module):
    """A convolutional net in the shape of a ResNet: blocks, pooling, one linear layer."""

    use_reentrant: bool | None = None  # of the checkpoint of the blocks, if there is one

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(inplace=False))
        self.module = nn.Dropout(0.0)  # its name is the prefix of DistributedDataParallel
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.use_reentrant is None:
            x = self.blocks(x)
        else:
            x = checkpoint(self.blocks, x, use_reentrant=self.use_reentrant)
        return self.fc(self.module(x.mean((2, 3))))


class Recurrent(nn.Module):
    """A model with a layer that runs three times per forward pass."""

    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.cell(x))
        return self.head(x)


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 8, 8), torch.arange(n) % CLASSES


def gradients(loss: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
