"""Small models, data and runs for the tests of the report.

Import it before the packages that the report needs: it skips the tests if they are missing.
"""

import pytest

for package in ("jinja2", "matplotlib", "torchmetrics", "tqdm"):
    pytest.importorskip(package, reason="the report needs the packages of the extra `inspect`")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from discfused.inspection.exciting import MostExciting  # noqa: E402
from discfused.inspection.measure import Run  # noqa: E402
from discfused.metrics import feature_discriminability  # noqa: E402

C, D, N, BATCH = 4, 20, 50, 16


class Small(nn.Module):
    """Two hidden layers for images of 5 x 6 pixels. `features` computes the classifier's input."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(96, D), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(D, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.features(self.first(x).relu())))


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, C, (N,), generator=generator)
    x = torch.randn(N, 3, 5, 6, generator=generator)
    return x + torch.randn(C, 3, 5, 6, generator=generator)[y], y


def loader() -> list[tuple[Tensor, Tensor]]:
    return [*zip(*(part.split(BATCH) for part in images()), strict=True)]


def run_of(num_classes: int, num_features: int, name: str = "run") -> Run:
    """A run whose features each fire mostly for one class, and none for class 0."""
    generator = torch.Generator().manual_seed(len(name))
    y = torch.arange(3 * num_classes) % num_classes
    fires_for = 1 + torch.arange(num_features) % (num_classes - 1)
    strength = 1 + 5 * torch.rand(num_features, generator=generator)
    x = torch.rand(len(y), num_features, generator=generator) + strength * (y[:, None] == fires_for)
    exciting = MostExciting(num_features)
    exciting.update(x, y, torch.rand(len(y), 3, 4, 4, generator=generator), 0)
    values = feature_discriminability(x, y, num_classes)
    names = [f"class {c}" for c in range(num_classes)]
    return Run(name, {"input of fc": values}, names, len(y), False, exciting)
