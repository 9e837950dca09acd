"""The Python code in README.md and docs/ runs unchanged and computes a loss with gradients."""

import functools
import re
from pathlib import Path

import pytest
import torch

from discfused import FusedDiscLoss
from models import CLASSES, Net, batch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", "\n".join(PAGES), re.MULTILINE | re.DOTALL)


pytestmark = pytest.mark.usefixtures("nothing_compiled")


@pytest.fixture
def names() -> dict:
    """The variables that the text around the code assumes."""
    model = Net()
    images, target = batch(8)
    pairs = [(image, int(label)) for image, label in zip(images, target, strict=True)]
    return {
        "torch": torch, "FusedDiscLoss": FusedDiscLoss, "num_classes": CLASSES, "device": "cpu",
        "model": model, "criterion": FusedDiscLoss.attach(model), "images": images,
        "target": target, "logits": torch.randn(8, CLASSES, requires_grad=True),
        "features": torch.rand(8, 12, requires_grad=True), "data": pairs,
        "parts": [(images[:5], target[:5]), (images[5:], target[5:])],
        "loader": torch.utils.data.DataLoader(pairs, 4),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "scaler": torch.amp.GradScaler("cpu"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of the trainers, about loggers and workers
@pytest.mark.parametrize("code", BLOCKS, ids=[code.strip().split("\n")[-1] for code in BLOCKS])
def test_block(code, names, monkeypatch, tmp_path, request):
    monkeypatch.chdir(tmp_path)  # trainers write folders
    if "DistributedDataParallel" in code:
        request.getfixturevalue("process_group")
    # The default compiler is slow; test_compile.py tests it.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    for package in set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if "Trainer(" in code and "transformers" in code:
        pytest.importorskip("accelerate", reason="accelerate is not installed")
        from transformers import TrainingArguments

        names["args"] = TrainingArguments(
            "runs", use_cpu=True, report_to=[], max_steps=2, remove_unused_columns=False
        )
        names["data"] = [{"x": image, "labels": label} for image, label in names["data"]]

    losses, forward = [], FusedDiscLoss.forward

    def recorded(criterion, *args, **kwargs):
        losses.append(forward(criterion, *args, **kwargs))
        assert criterion.terms.gini > 0
        return losses[-1]

    monkeypatch.setattr(FusedDiscLoss, "forward", recorded)
    exec(compile(code, "README.md", "exec"), names)
    if "Classifier" in names:  # as a trainer calls it
        names["Classifier"](names["model"]).training_step((names["images"], names["target"]), 0)
    losses += [names["loss"]] if "loss" in names else []
    assert losses or "loss" not in code
    assert all(loss.isfinite() and loss.requires_grad for loss in losses)


def test_what_contributing_points_to_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`([\w./]+/[\w.]+|\.ci/\w+)`", text))
    assert len(paths) >= 15
    assert not [path for path in paths if not (ROOT / path).exists()]
    code = "".join(
        path.read_text()
        for pattern in ("discfused/**/*.py", "csrc/**/*.[hc]*", "tests/**/*.py")
        for path in ROOT.glob(pattern)
    )
    for name in set(re.findall(r"`(\w+)`", text)) - {"discfused"}:
        assert re.search(rf"\b{name}\b", code), name
