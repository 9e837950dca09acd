"""Every example runs unchanged, its loss decreases, and the terms change the result."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

from discfused import FusedDiscLoss

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NEEDS = {
    "plain_loop": [],
    "gradient_accumulation": [],
    "lightning_module": ["lightning"],
    "huggingface_trainer": ["transformers", "accelerate"],
    "timm_style": ["timm"],
}


def run(name, monkeypatch, **options):
    """Runs an example. Returns the printed losses and the last terms of its criteria."""
    criteria, attach = [], FusedDiscLoss.attach

    def recorded(*args, **kwargs):
        criteria.append(attach(*args, **{**kwargs, **options}))
        return criteria[-1]

    printed = io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(FusedDiscLoss, "attach", recorded)
        runpy.run_path(str(EXAMPLES / f"{name}.py"))
    losses = [float(loss) for loss in re.findall(r"\bloss\W+([\d.]+)", printed.getvalue())]
    return losses, [criterion.terms for criterion in criteria]


@pytest.mark.filterwarnings("ignore")  # of the trainers, about loggers and workers
@pytest.mark.parametrize("name", NEEDS)
def test_example(name, monkeypatch):
    for package in NEEDS[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    losses, terms = run(name, monkeypatch)
    _, stronger = run(name, monkeypatch, gini_weight=2.0)
    runs = len(terms)  # one for each criterion
    assert runs and len(losses) % runs == 0
    epochs = len(losses) // runs
    for index in range(runs):
        first, *_, last = losses[index * epochs : (index + 1) * epochs]
        assert last < 0.9 * first
        # The same seed and the same batches: only the gradient of the term differs.
        assert stronger[index].gini < terms[index].gini - 0.01
