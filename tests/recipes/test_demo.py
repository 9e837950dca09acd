"""`discfused demo`: a whole run, its table and picture, and bad options."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("sklearn", reason="the demo's data comes with scikit-learn")
import report_cases  # noqa: F401  # skips where the packages of the report are missing
from discfused import cli
from discfused._files import require_writable
from discfused.inspection import measure
from discfused.metrics import feature_discriminability
from discfused.recipes import demo, demo_picture, demo_report
from discfused.recipes._paired import paired
from discfused.recipes.demo_data import NAMES, SETUPS, Run, Setup, split


def run(tmp_path, *arguments):
    """The results of a run in this process."""
    out, file = tmp_path / "out", tmp_path / "runs.json"
    given = ["--images", "2", "--epochs", "1", "--out", str(out), "--json", str(file), *arguments]
    assert cli.main(["demo", *given]) == 0
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]  # no temporary
    assert {demo.PICTURE, "report.html", "heat-map.png"} < {path.name for path in out.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs.json"]
    return json.loads(file.read_text())


def test_the_features_fire_for_fewer_digits_and_the_demo_says_so(tmp_path, capsys):
    runs = run(tmp_path, "--seeds", "1", "--epochs", "60", "--images", "6")["runs"]
    same = [run for run in runs if (run["network"], run["training"]) == ("resnet", "paper")]
    found = {run["loss"]: run for run in same if not run["smoothing"]}
    assert found["ce"]["accuracy"] > 40
    assert max(found[loss]["gini"] for loss in ("ce+gini", "ce+gini+kl")) < found["ce"]["gini"]
    printed = capsys.readouterr().out
    assert f"| resnet | paper | ce | {found['ce']['accuracy']:.2f} | - | - | - |" in printed
    assert f"| paper | ce+gini+kl | {found['ce+gini+kl']['accuracy']:.2f} | " in printed
    assert printed.count("| - | undecided |") == len(SETUPS) - 3  # one pair each
    picture = (tmp_path / "out" / demo.PICTURE).read_bytes()
    assert picture.startswith(b"\x89PNG") and 20_000 < len(picture) < 200_000
    shown = json.loads((tmp_path / "out" / "report.json").read_text())["runs"]
    assert [of_loss["name"] for of_loss in shown] == [*NAMES.values()]
    for of_loss, loss in zip(shown[1:], ("ce", "ce+gini+kl"), strict=True):
        assert of_loss["samples"] == 1797 - 60
        gini = of_loss["layers"][0]["summary"]["mean_gini"]
        assert gini == pytest.approx(found[loss]["gini"], abs=1e-5)


def test_the_losses_of_a_seed_differ_in_nothing_else(tmp_path):
    """With weights of 0 all losses give equal results: same split, initial weights and batches, for
    any number of processes."""
    documents = []
    for threads in ("1", "2"):
        command = [sys.executable, "-m", "discfused", "demo", "--seeds", "2", "--epochs", "1"]
        command += ["--gini-weight", "0", "--kl-weight", "0", "--out", "a/b", "--json", "c/d.json"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path,
                                env={**os.environ, "OMP_NUM_THREADS": threads})  # fmt: skip
        assert result.returncode == 0, result.stderr
        documents.append(json.loads((tmp_path / "c/d.json").read_text())["runs"])
    found = documents[0]
    assert [(row["seed"], *(row[name] for name in Setup._fields)) for row in found] == [
        (seed, *setup) for seed in (0, 1) for setup in SETUPS
    ]
    results = {}
    for row in found:
        same = tuple(row[name] for name in ("seed", "network", "training", "smoothing"))
        results.setdefault(same, set()).add((row["accuracy"], row["gini"], row["kl"]))
    assert [len(numbers) for numbers in results.values()] == [1] * 8
    for one, other in zip(*documents, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_the_document_tells_all_that_the_runs_depend_on(tmp_path):
    document = run(tmp_path, "--seeds", "1", "--backend", "reference", "--gini-weight", "0.25",
                   "--kl-weight", "2", "--impurity", "collision")  # fmt: skip
    assert document["options"] == {
        "seeds": 1, "images": 2, "epochs": 1, "gini_weight": 0.25, "kl_weight": 2.0,
        "impurity": "collision", "backend": "reference", "device": "cpu",
    }  # fmt: skip
    assert document["versions"]["torch"] == torch.__version__
    assert {"discfused", "python", "numpy", "sklearn", "matplotlib"} < set(document["versions"])


def test_the_split():
    images, digits, train, test = split(3, 20)
    assert images.shape == (1797, 3, 8, 8) and -2.2 < images.min() < 0 < images.max() < 2.7
    assert torch.bincount(digits[train]).tolist() == [20] * 10
    assert torch.cat([train, test]).unique().numel() == len(train) + len(test) == 1797
    assert torch.equal(train, split(3, 20).train) and not torch.equal(train, split(4, 20).train)


def test_the_residual_network_is_that_of_the_recipes():
    pytest.importorskip("torchvision", reason="the recipes' network is torchvision's")
    from discfused.recipes import models
    from discfused.recipes.options import Model

    own = demo.network("resnet", 0).eval()
    recipes = models.build(Model("resnet18", 0.25, "auto", 0.0, False), 10, 8).eval()
    theirs, ours = recipes.state_dict(), own.state_dict()
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]
    recipes.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(own(images), recipes(images))


def test_a_training_that_diverges_is_reported(tmp_path, capsys):
    runs = run(tmp_path, "--seeds", "1", "--gini-weight", "1e39", "--epochs", "3")["runs"]
    row = next(row for row in runs if row["loss"] == "ce+gini")
    assert row["gini"] is None and row["accuracy"] < 20
    assert "nan" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "runs.json").read_text()


# --- bad options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "0"], "seeds is 0, expected at least 1"),
        (["--epochs", "-1"], "epochs is -1, expected at least 1"),
        (["--images", "101"], "images is 101, expected from 1 to 100"),
        (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["--gini-weight", "nan"], "gini_weight is nan, expected a finite number >= 0"),
        (["--kl-weight", "-1"], "kl_weight is -1.0, expected a finite number >= 0"),
        (["--backend", "quick"], "backend is 'quick', expected one of 'reference', "),
        (["--out", "file"], "out is 'file', expected a folder that can be created and written"),
        (["--json", "file/runs.json"], "json is 'file', expected a folder"),
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


# --- the table ------------------------------------------------------------------------------------


def test_the_table():
    accuracies = {
        Setup("resnet", "paper", "ce"): [90, 92, 94, 93, 91],
        # -1, 1, -1, 1, 0: mean 0, standard error sqrt(1 / 5), t(97.5%, 4) = 2.7764
        Setup("resnet", "paper", "ce", 0.1): [89, 93, 93, 94, 91],
        # 1, 2, 3, 2, 2: mean 2, standard error sqrt(0.5 / 5)
        Setup("resnet", "paper", "ce+gini"): [91, 94, 97, 95, 93],
        Setup("resnet", "tuned", "ce"): [80, 80, 80, 80, 80],
        Setup("resnet", "tuned", "ce+gini+kl"): [79, 78, 77, 78, 78],
    }
    runs = [
        Run(setup, seed, accuracy, 0.5 + seed / 10, 0.01 * seed, 1.0)
        for setup, values in accuracies.items()
        for seed, accuracy in reversed([*enumerate(values)])  # their order does not matter
    ]
    terms = "0.700 | 0.0200"
    assert demo_report.report(runs).splitlines()[2:7] == [
        f"| resnet | paper | ce | 92.00 | - | - | - | - | {terms} |",
        "| resnet | paper | ce, smoothed labels | 92.00 | +0.00 +- 0.45 | -1.24 to +1.24 | 1 "
        f"| undecided | {terms} |",
        # t = 2 / sqrt(0.1) with 4 degrees of freedom
        "| resnet | paper | ce+gini | 94.00 | +2.00 +- 0.32 | +1.12 to +2.88 | 0.0032 | gain "
        f"| {terms} |",
        f"| resnet | tuned | ce | 80.00 | - | - | - | - | {terms} |",
        "| resnet | tuned | ce+gini+kl | 78.00 | -2.00 +- 0.32 | -2.88 to -1.12 | 0.0032 | loss "
        f"| {terms} |",
    ]


@pytest.mark.parametrize(
    "differences",
    [[2, 2, 2, 2], [100 / 1597 * (n + 1) - 100 / 1597 * n for n in (1450, 1451, 7)]],
    ids=["equal", "rounded"],
)
def test_differences_without_a_spread_decide_nothing(differences):
    assert paired(differences, [0] * len(differences)).verdict == "undecided"


# --- the picture ----------------------------------------------------------------------------------


def test_the_picture_of_features_that_are_all_dead(tmp_path):
    dead = feature_discriminability(torch.zeros(10, 128), torch.arange(10), 10)
    run = measure.Run("dead", {"input of 12": dead}, [str(c) for c in range(10)], 10, False, None)
    demo_picture.draw(dict.fromkeys(NAMES, (10.0, run)), tmp_path / "dead.png")
    assert (tmp_path / "dead.png").stat().st_size > 10_000
