"""Type annotations of the installed package, in a user's file."""

import subprocess
import sys

import pytest

USER = """
import torch
from discfused import ClassSums, DiscTerms, FusedDiscLoss, disc_terms, fused_disc_loss

model = torch.nn.Linear(8, 3)
criterion: FusedDiscLoss = FusedDiscLoss.attach(model, layers=None, kl_weight=1.0)
x, y = torch.rand(4, 8), torch.arange(4) % 3
terms: DiscTerms = disc_terms(x, y, 3)
gini: torch.Tensor = terms.gini
whole: ClassSums = criterion.class_sums(model(x), y) + criterion.class_sums(model(x), y)
fused_disc_loss(model(x), y, x, impurity="collision", process_group="world")
"""

WRONG = [
    ("disc_terms(x, y, '3')", 'expected "int"'),
    ("fused_disc_loss(model(x), y, x, gini=1.0)", 'Unexpected keyword argument "gini"'),
    ("terms.entropy", 'has no attribute "entropy"'),
]


@pytest.mark.slow
def test_a_users_file(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "user.py").write_text(USER + "\n".join(line for line, _ in WRONG))
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "user.py"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert len(errors) == len(WRONG), result.stdout + result.stderr
    for error, (_, words) in zip(errors, WRONG, strict=True):
        assert words in error
