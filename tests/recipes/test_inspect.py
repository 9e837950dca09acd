"""`discfused inspect` on runs of the recipes."""

import json
import shutil
import signal

import pytest
import torch

from recipe_cases import one_thread, run_options  # isort: skip
import discfused.metrics
from discfused import cli
from discfused.recipes import records, train

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on digits, one with dropout and one that never learns on; and one of CvT-13."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in (
        (
            "plain",
            {"loss.name": "ce", "model.dropout": 0.4, "data.validation": 3, "data.augment": "crop"},
        ),
        ("terms", {"loss.name": "ce+gini+kl", "model.name": "resnet17"}),
        ("cvt", {"model.name": "cvt13", "train.ema": 0.5}),
    ):
        train.run(run_options(changes=changes), folder / name)
    return folder


def inspect(*arguments):
    return cli.main(["inspect", *map(str, arguments)])


def layers_of(folder) -> list[dict]:
    (run,) = json.loads((folder / "report.json").read_text())["runs"]
    return run["layers"]


@pytest.mark.parametrize("name", ["plain", "terms", "cvt"])
def test_the_numbers_are_those_that_the_run_was_tested_with(runs, tmp_path, name, capsys):
    assert inspect("--checkpoint", runs / name, "--out", tmp_path) == 0
    row = json.loads((runs / name / records.RESULT).read_text())
    *_, last = layers_of(tmp_path)
    expected = {"mean_gini": row["gini"], "kl": row["kl"], "live_share": row["live"]}
    for number, value in expected.items():
        assert last["summary"][number] == pytest.approx(value, abs=1e-5)
    names = ["layer1", "layer2", "layer3", "layer4"]
    assert [layer["name"] for layer in layers_of(tmp_path)] == (
        ["input of classifier"] if name == "cvt" else names
    )
    assert f"{name}: mean_gini {last['summary']['mean_gini']:.4g}" in capsys.readouterr().out


def test_two_runs_side_by_side_in_the_folder_of_the_first(runs, capsys):
    assert inspect("--checkpoint", runs / "plain", "--compare", runs / "terms") == 0
    folder = runs / "plain" / "report"
    document = json.loads((folder / "report.json").read_text())
    assert [run["name"] for run in document["runs"]] == ["plain", "terms"]
    assert (folder / "report.html").exists() and (folder / "heat-map.png").exists()
    assert str(folder) in capsys.readouterr().out


@pytest.mark.parametrize(("part", "samples"), [("train", 17), ("validation", 3)])
def test_other_images_of_the_data(runs, tmp_path, part, samples):
    """Always without augmentation."""
    same = tmp_path / "same"
    shutil.copytree(runs / "plain", same)
    recipe = (same / "recipe.yaml").read_text()
    assert "augment: crop\n" in recipe
    (same / "recipe.yaml").write_text(recipe.replace("augment: crop", "augment: none"))
    found = []
    for folder in (runs / "plain", same):
        arguments = ["--checkpoint", folder, "--part", part, "--layers", "conv1", "layer4"]
        assert inspect(*arguments, "--out", tmp_path / "out") == 0
        (run,) = json.loads((tmp_path / "out" / "report.json").read_text())["runs"]
        assert run["samples"] == samples
        found.append(run["layers"])
    assert [layer["name"] for layer in found[0]] == ["conv1", "layer4"]
    assert found[0] == found[1]


def test_a_run_that_goes_on(tmp_path, monkeypatch):
    """The report uses the averaged weights of the last checkpoint."""
    options = run_options(changes={"train.ema": 0.5, "train.save_every": 1})
    finished = train.Training.finish
    seen = []

    def looked_at(self, log):
        assert inspect("--checkpoint", tmp_path, "--out", tmp_path / "now") == 0
        seen.append(layers_of(tmp_path / "now")[-1]["summary"])
        return finished(self, log)

    def save_at_the_end(self, logs, done):
        self.save()

    monkeypatch.setattr(train.Training, "look", save_at_the_end)
    monkeypatch.setattr(train.Training, "finish", looked_at)
    row = train.run(options, tmp_path)
    assert seen[0]["mean_gini"] == pytest.approx(row["gini"], abs=1e-5)


def test_ctrl_c_writes_what_was_seen(runs, tmp_path, monkeypatch, capsys):
    metric = discfused.metrics.FeatureDiscriminability
    update, calls = metric.update, []

    def interrupting(self, *arguments):
        calls.append(self)
        if len(calls) == 5:  # the second batch, of four layers each
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    monkeypatch.setattr(metric, "update", interrupting)
    arguments = ["--checkpoint", runs / "plain", "--compare", runs / "terms", "--batch-size", 100]
    assert inspect(*arguments, "--out", tmp_path) == 130
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["partial"] and run["samples"] == 200
    assert "(partial: 200 samples)" in capsys.readouterr().out


def test_what_it_refuses(runs, tmp_path, capsys):
    for arguments, sentence in (
        (["--checkpoint", tmp_path / "gone"], "gone holds no recipe.yaml: expected the folder"),
        (["--checkpoint", runs / "terms", "--part", "validation"], "part is 'validation', but the"),
        (["--checkpoint", runs / "terms", "--data", "digit-pairs"],
         "data is 'digit-pairs' with 100 classes, but the run in "),
        (["--checkpoint", runs / "terms", "--batch-size", "0"], "--batch-size is 0, expected at"),
        (["--checkpoint", runs / "terms", "--layers", "layer9"], "layers contains 'layer9', which"),
    ):  # fmt: skip
        assert inspect(*arguments, "--out", tmp_path / "out") == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()
    assert not [*(tmp_path / "out").iterdir()]
    (runs / "terms" / records.WEIGHTS).rename(tmp_path / "weights.pt")
    try:
        assert inspect("--checkpoint", runs / "terms") == 1
    finally:
        (tmp_path / "weights.pt").rename(runs / "terms" / records.WEIGHTS)
    assert "holds neither weights.pt nor checkpoint.pt" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["empty", "garbage", "cut off", "no weights", "of another"])
def test_damaged_weights_are_named_in_one_line(runs, tmp_path, capsys, content):
    folder = tmp_path / "run"
    shutil.copytree(runs / "plain", folder)
    path = folder / records.WEIGHTS
    whole = path.read_bytes()
    parts = {"empty": b"", "garbage": b"hello", "cut off": whole[: len(whole) // 2]}
    if content in parts:
        path.write_bytes(parts[content])
    elif content == "no weights":
        torch.save([1], path)
    else:
        shutil.copy(runs / "cvt" / records.WEIGHTS, path)
    assert inspect("--checkpoint", folder, "--out", tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"discfused: {path} cannot be read (")
    (folder / records.WEIGHTS).unlink()
    (folder / records.CHECKPOINT).write_bytes(b"")
    assert inspect("--checkpoint", folder, "--out", tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"discfused: {folder / records.CHECKPOINT} cannot be read (EOFError)")
