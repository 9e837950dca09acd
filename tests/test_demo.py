"""`discfused demo`: one run as a person would start it; table, picture and refusals by hand."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("sklearn", reason="the demo's data comes with scikit-learn")
pytest.importorskip("matplotlib", reason="the demo draws with matplotlib")

from discfused import cli
from discfused.recipes import demo, demo_picture, demo_report
from discfused.recipes._files import require_writable
from discfused.recipes._paired import paired
from discfused.recipes._progress import Bar
from discfused.recipes.demo_data import LOSSES, Measured, Run, split

RESULTS = {"discfused-demo.png", "discfused-demo.jsonl"}


def run(tmp_path, *arguments):
    """The rows of a run in this process."""
    assert cli.main(["demo", "--out", str(tmp_path), *arguments]) == 0
    assert {path.name for path in tmp_path.iterdir()} == RESULTS  # no temporary file stays
    return rows(tmp_path)


def rows(folder):
    return [json.loads(line) for line in (folder / "discfused-demo.jsonl").read_text().splitlines()]


def test_the_features_speak_for_fewer_digits_and_it_says_so(tmp_path, capsys):
    heavy = "--gini-weight", "0.3", "--kl-weight", "0.3"
    ce, gini, both = run(tmp_path, "--seeds", "1", "--epochs", "20", *heavy)
    for row in (ce, gini, both):
        assert row["accuracy"] > 90 and row["live"] > 32
    assert max(gini["gini"], both["gini"]) < ce["gini"] - 0.1
    printed = capsys.readouterr().out
    assert f"| ce+gini+kl | {both['accuracy']:.2f} | - |" in printed
    assert printed.count("points of accuracy: undecided.\n") == 2  # one pair
    assert printed.count("lower with 1 of 1 seeds") == 2
    picture = (tmp_path / "discfused-demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and 20_000 < len(picture) < 200_000


def test_the_losses_of_a_seed_differ_in_nothing_else(tmp_path):
    """With weights of 0 the three are one: same split, same initial weights, same batches."""
    command = [sys.executable, "-m", "discfused", "demo", "--seeds", "2", "--epochs", "1"]
    command += ["--gini-weight", "0", "--kl-weight", "0", "--out", "a/b"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "\r" not in result.stderr  # no progress bar in a log
    found = rows(tmp_path / "a/b")
    assert [(row["seed"], row["loss"]) for row in found] == [(s, x) for s in (0, 1) for x in LOSSES]
    seeds = [
        {(row["accuracy"], row["gini"], row["kl"]) for row in found if row["seed"] == seed}
        for seed in (0, 1)
    ]
    assert len(seeds[0]) == len(seeds[1]) == 1
    assert seeds[0] != seeds[1]


def test_a_row_tells_all_that_it_depends_on(tmp_path):
    row = run(tmp_path, "--seeds", "1", "--epochs", "1", "--backend", "reference",
              "--gini-weight", "0.5", "--kl-weight", "2")[-1]  # fmt: skip
    assert row["options"] == {
        "seeds": 1, "epochs": 1, "gini_weight": 0.5, "kl_weight": 2.0,
        "backend": "reference", "device": "cpu", "out": str(tmp_path),
    }  # fmt: skip
    assert row["versions"]["torch"] == torch.__version__
    assert {"discfused", "python", "numpy", "sklearn", "matplotlib"} < set(row["versions"])


def test_the_split():
    images, digits, train, test = split(3)
    assert images.shape == (1797, 1, 8, 8) and images.min() == 0 and images.max() == 1
    assert torch.bincount(digits[train]).tolist() == [20] * 10
    assert torch.cat([train, test]).unique().numel() == len(train) + len(test) == 1797
    assert torch.equal(train, split(3).train) and not torch.equal(train, split(4).train)


def test_a_training_that_diverges_is_reported(tmp_path, capsys):
    row = run(tmp_path, "--seeds", "1", "--epochs", "1", "--gini-weight", "1e39")[1]
    assert row["gini"] is None and row["accuracy"] < 20
    assert "nan" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "discfused-demo.jsonl").read_text()


# --- refused before anything is trained -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "0"], "seeds is 0, expected at least 1"),
        (["--epochs", "-1"], "epochs is -1, expected at least 1"),
        (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["--gini-weight", "nan"], "gini_weight is nan, expected a finite number >= 0"),
        (["--kl-weight", "-1"], "kl_weight is -1.0, expected a finite number >= 0"),
        (["--backend", "quick"], "backend is 'quick', expected one of 'reference', "),
        (["--out", "file"], "out is 'file', expected a folder that can be made and written"),
        (["--out", "file/below"], "out is 'file/below', expected a folder"),
    ],
)
def test_bad_options(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run", lambda options: pytest.fail("it went on"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", *arguments])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"out is .*Permission denied"):
        require_writable("out", tmp_path)


# --- the table, by hand ---------------------------------------------------------------------------


def made_up(accuracies: dict[str, list[float]]) -> list[Run]:
    seconds = (1.0, 2.0, 9.0, 1.5, 2.5)  # median of the first three: 2
    runs = [
        Run(loss, seed, accuracy, 0.5 + seed / 10, 0.01 * seed, 64 - seed, seconds[seed])
        for loss, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    return runs[::-1]  # the order of the runs does not matter


def test_table():
    text = demo_report.table(
        made_up({"ce": [90, 92, 94], "ce+gini": [91, 94, 97], "ce+gini+kl": [94, 92, 87]})
    )
    assert text.splitlines()[2:5] == [
        # differences 1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt(3)
        # differences 4, 0, -7: mean -1, sd sqrt(31), error sqrt(31 / 3)
        "| ce | 92.00 | 2.00 | - | 0.600 | 0.0100 | 63.0 of 64 | 2.00 |",
        "| ce+gini | 94.00 | 3.00 | +2.00 +- 0.58 | 0.600 | 0.0100 | 63.0 of 64 | 2.00 |",
        "| ce+gini+kl | 91.00 | 3.61 | -1.00 +- 3.21 | 0.600 | 0.0100 | 63.0 of 64 | 2.00 |",
    ]


def test_findings():
    accuracies = {
        "ce": [90] * 5,
        "ce+gini": [91, 92, 93, 92, 92],
        "ce+gini+kl": [89, 91, 89, 91, 90],
    }
    text = demo_report.findings(made_up(accuracies))
    # t(97.5%, 4) = 2.7764; differences 1, 2, 3, 2, 2: error sqrt(0.5 / 5) = 0.3162, margin 0.878
    assert "ce+gini against ce: +2.00 +- 0.32 points of accuracy, " in text
    assert "95% interval +1.12 to +2.88: gain.\n  Gini of the features: lower with 0 of 5" in text
    # differences -1, 1, -1, 1, 0: error sqrt(1 / 5) = 0.4472, margin 1.242
    assert "ce+gini+kl against ce: +0.00 +- 0.45 points of accuracy, " in text
    assert "95% interval -1.24 to +1.24: undecided.\n" in text


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1, 2, 3, 2, 2], "gain"),
        ([-1, -2, -3, -2, -2], "loss"),
        ([-1, 2, 1, -2, 1], "undecided"),
        ([2, 2, 2, 2], "undecided"),  # no spread to test against ...
        (
            [100 / 1597 * (n + 1) - 100 / 1597 * n for n in (1450, 1451, 7)],
            "undecided",
        ),  # but noise
        ([5], "undecided"),
    ],
)
def test_verdict(differences, verdict):
    assert paired(differences, [0] * len(differences)).verdict == verdict


# --- the picture ----------------------------------------------------------------------------------


def test_features_are_ordered_by_their_class_and_then_by_purity():
    nan = float("nan")
    # columns: class 1 with 3/4, class 0 with 2/3, class 1 alone, not a number
    H = torch.tensor([[1.0, 4.0, 0.0, nan], [3.0, 2.0, 5.0, nan]])
    P, favourite = demo_picture.favourites(H)
    assert favourite.tolist() == [0, 1, 1]
    torch.testing.assert_close(P, torch.tensor([[2 / 3, 0, 1 / 4], [1 / 3, 1, 3 / 4]]))


def test_the_picture_of_features_that_are_all_dead(tmp_path):
    dead = Measured(10.0, 0.0, 0.0, torch.zeros(10, 0))
    shown = dict.fromkeys(demo_picture.NAMES, dead)
    demo_picture.draw(shown, torch.arange(10), tmp_path / "dead.png")
    assert (tmp_path / "dead.png").stat().st_size > 10_000


def test_measured_counts_the_live_features():
    """A network whose first feature is constant: it is dead for the criterion, and here."""
    model, data = demo.network(0), split(0)
    with torch.no_grad():
        model[7].weight[0], model[8].weight[0], model[8].bias[0] = 0, 0, 1
    untouched = demo.measure(demo.network(0), data, None)
    assert demo.measure(model, data, None).histogram.shape[1] == untouched.histogram.shape[1] - 1


# --- the progress bar -----------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_shows_on_terminals_only_and_is_gone_at_the_end(terminal, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar(4) as bar:
        bar.advance("seed 0")
    if not terminal:
        assert stream.getvalue() == ""
        return
    _, shown, blank, last = stream.getvalue().split("\r")
    assert shown.startswith("[#######                       ]  25%, ")
    assert shown.rstrip().endswith(" s left: seed 0")
    assert blank.strip() == last == "" and len(blank) == len(shown)
