"""The measurements of a network on the test images."""

import recipe_cases  # noqa: F401  # skips where the packages of the recipes are missing

# isort: split
import pytest
import torch
from torch import nn

from discfused import disc_terms
from discfused.recipes.evaluate import evaluate
from recipe_cases import run_options


def test_gini_is_measured_whatever_impurity_the_run_trains_with():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.rand(10, 3, 2, 2), torch.randint(0, 3, (10,))) for _ in range(2)]
    images, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        expected = disc_terms(model[:3](images), target, 3).gini.item()
    for impurity in ("gini", "collision"):
        loss = run_options(changes={"loss.impurity": impurity}).loss
        measured = evaluate(model, batches, 3, loss, torch.device("cpu"))
        assert measured["gini"] == pytest.approx(expected, rel=1e-6)


def test_the_accuracy_of_classes_without_images_does_not_count():
    """Class 0: one of two right. Class 1: right. Class 2: only predicted. Class 3: nowhere."""
    answers = torch.eye(4)[[0, 2, 1]]
    batches = [(answers, torch.tensor([0, 0, 1]))]
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4))
    measured = evaluate(model, batches, 4, run_options().loss, torch.device("cpu"))
    assert measured["class_accuracy"] == 75.0 and measured["accuracy"] == 66.6667
