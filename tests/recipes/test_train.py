"""Runs: every network, data set and loss; interrupted runs give the same result."""

import recipe_cases

# isort: split
import csv
import errno
import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from discfused import cli
from discfused.recipes import models, processes, records, train
from discfused.recipes.options import flat
from recipe_cases import (  # noqa: F401 (one_thread is a fixture)
    DATASETS,
    LOSSES,
    MODELS,
    Datasets,
    one_thread,
    run_options,
)

# Everything that has a state of its own at once: momentum, averaged weights, dropped paths,
# augmentation, balanced batches, weights of the terms that rise, the best epoch so far.
STATEFUL = {
    "model.name": "cvt13", "train.ema": 0.8, "train.epochs": 4, "train.clip": 0.5,
    "train.lr_schedule": "one-cycle", "loss.ramp": 0.5, "train.eval_every": 1,
    "train.select": "best", "data.validation": 5, "data.samples_per_class": 2,
}  # fmt: skip


TINY = ["--data", "digits", "--accelerator", "cpu", "--set", "model.width=0.125",
        "--set", "data.train_per_class=20"]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Datasets(tmp_path_factory.mktemp("data"))


def weights(folder):
    return torch.load(folder / records.WEIGHTS, weights_only=True)


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("model", "data"),
    [*((model, "digits") for model in MODELS),
     *(("resnet18", data) for data in DATASETS if data != "digits")],
)  # fmt: skip
def test_every_network_and_every_data_set_with_every_loss(
    small, tmp_path, monkeypatch, model, data
):
    recipe_cases.accept_small_files(monkeypatch)
    found = {}
    for loss in LOSSES:
        folder = tmp_path / loss
        weighted = {"loss.name": loss, "loss.gini_weight": 3.0, "loss.kl_weight": 3.0}
        options = small.options(data, **{"model.name": model, **weighted})
        row = train.run(options, folder)
        # A fifth of CIFAR is held out.
        steps = {"caltech101": 3, "cifar10": 4, "digit-pairs": 4}
        assert row["steps"] == steps.get(data, 2)
        assert 0 <= row["accuracy"] <= 100 and 0 <= row["gini"] <= 1 and 0 < row["live"] <= 1
        assert json.loads((folder / records.RESULT).read_text()) == row
        found[loss] = weights(folder)
        logged = [*csv.DictReader((folder / "train.csv").open())]
        for name, term in (("gini_weight", "gini"), ("kl_weight", "kl")):
            assert {float(r[name]) for r in logged} == {3.0 * (term in loss.split("+"))}
    for one, other in itertools.combinations(LOSSES, 2):  # each is a loss of its own
        assert not same_bits(found[one], found[other])


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A run that nothing interrupts: its options, its folder and its row."""
    options, folder = small.options("caltech101", **STATEFUL), tmp_path_factory.mktemp("whole")
    row = train.run(options, folder)
    assert row["steps"] == 8 and "flip" in options.data.augment
    assert 1 <= row["best_epoch"] <= 4
    return options, folder, row


def check_same_run(parts, row, whole):
    _, folder, expected = whole
    assert same_bits(weights(folder), weights(parts))
    for part in records.COLUMNS:  # those on held-out images, too
        assert (folder / f"{part}.csv").read_text() == (parts / f"{part}.csv").read_text()
    timed = ("seconds", "finished")
    assert all(row[key] == expected[key] for key in row if key not in timed)
    assert not (parts / records.CHECKPOINT).exists()


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_interrupted_run_ends_in_the_same_weights(
    small, whole, tmp_path, monkeypatch, stop_after
):
    step = train.Training.train_step

    def interrupted_step(self, *arguments):
        values = step(self, *arguments)
        if self.step == stop_after:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C
        return values

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "train_step", interrupted_step)
        with pytest.raises(records.Interrupted, match=f"after step {stop_after} of 8.*--resume"):
            train.run(whole[0], tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / records.RESULT).exists()
    torch.manual_seed(99)  # another process would be in another state
    options = small.options("caltech101", **STATEFUL, **{"data.workers": 1})
    check_same_run(tmp_path, train.run(options, tmp_path, resume=True), whole)


@pytest.mark.parametrize("place", ["test", "write_result"])
def test_a_run_stopped_in_or_after_the_final_test_tests_again(whole, tmp_path, monkeypatch, place):
    options, finish = whole[0], train.Training.finish

    def interrupted(self, log):
        signal.raise_signal(signal.SIGTERM)
        return finish(self, log)

    def killed(*arguments):  # the row of the test is in test.csv
        raise records.Interrupted(8, 8)

    with monkeypatch.context() as patch:
        if place == "test":
            patch.setattr(train.Training, "finish", interrupted)
        else:
            patch.setattr(records, "write_result", killed)
        with pytest.raises(records.Interrupted, match="after step 8 of 8"):
            train.run(options, tmp_path)
    assert (tmp_path / records.WEIGHTS).exists() == (place == "write_result")
    with monkeypatch.context() as patch:
        patch.delattr(train.Training, "train_step")  # no step is left
        row = train.run(options, tmp_path, resume=True)
    check_same_run(tmp_path, row, whole)


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch, capsys):
    written, write = [], Path.write_bytes

    def full_disk(path, content):
        written.append(path)
        if len(written) == 2:
            write(path, bytes(content)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    run = ["train", *TINY, "--set", "train.save_every=1", "--out", str(tmp_path)]
    assert cli.main(run) == 1
    checkpoint = tmp_path / records.CHECKPOINT
    assert f"discfused: [Errno 28] No space left on device: '{checkpoint}'\n" in (
        capsys.readouterr().err.splitlines(keepends=True)
    )
    assert torch.load(checkpoint, weights_only=True)["step"] == 1
    assert not [*tmp_path.glob(".*.pt")]


def test_a_folder_holds_one_run(tmp_path):
    options = run_options()
    row = train.run(options, tmp_path)
    with pytest.raises(records.OtherRun, match="already contains a run: pass --resume"):
        train.run(options, tmp_path)
    assert train.run(options, tmp_path, resume=True) == row
    with pytest.raises(records.OtherRun, match=r"other options \(train.epochs 1 -> 2\)"):
        train.run(run_options(changes={"train.epochs": 2}), tmp_path, resume=True)
    with records.lock(tmp_path), pytest.raises(records.InUse, match="in use by another process"):
        train.run(options, tmp_path, resume=True)


def test_the_folder_tells_everything_about_a_run(tmp_path):
    options = run_options(changes={"train.eval_every": 1, "train.epochs": 2})
    train.run(options, tmp_path)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    seed = recipe.pop("seed")
    stored = {f"{s}.{name}": value for s, part in recipe.items() for name, value in part.items()}
    assert {**stored, "seed": seed} == flat(options)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__ and "commit" in environment
    for part, steps in (("train", [1, 2, 3, 4]), ("test", [2, 4])):
        rows = [*csv.DictReader((tmp_path / f"{part}.csv").open())]
        assert [int(row["step"]) for row in rows] == steps
        assert [*rows[0]] == ["step", *records.COLUMNS[part]] and all(rows[0].values())
    assert any((tmp_path / "tensorboard").iterdir())


def test_training_that_diverges_stops_early(tmp_path):
    options = run_options(changes={"train.lr": 1e30, "train.clip": None, "train.epochs": 99})
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d of 198 \(ce"):
        train.run(options, tmp_path)
    assert not (tmp_path / records.RESULT).exists()


def test_the_best_epoch_on_held_out_images_is_tested(tmp_path, monkeypatch):
    """The first epoch with the best held-out accuracy, independent of the test images."""
    accuracies = iter([30.0, 50.0, 50.0, 40.0, 12.5])
    evaluate, networks = train.evaluate.evaluate, []

    def told(model, batches, *arguments):
        networks.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        batches = [*batches]
        counted = sum(len(target) for _, target in batches)
        assert counted == (5 if len(networks) <= 4 else 1777)
        return evaluate(model, batches, *arguments) | {"accuracy": next(accuracies)}

    monkeypatch.setattr(train.evaluate, "evaluate", told)
    changes = {"data.validation": 5, "train.select": "best", "train.eval_every": 1}
    row = train.run(run_options(changes={**changes, "train.epochs": 4}), tmp_path)
    assert (row["best_epoch"], row["validation_accuracy"], row["accuracy"]) == (2, 50.0, 12.5)
    assert same_bits(networks[4], networks[1]) and not same_bits(networks[4], networks[3])
    assert same_bits(networks[1], weights(tmp_path))
    for part, steps in (("validation", [1, 2, 3, 4]), ("test", [4])):
        rows = [*csv.DictReader((tmp_path / f"{part}.csv").open())]
        assert [int(row["step"]) for row in rows] == steps


@pytest.mark.parametrize("capture", ["output", "input"])
def test_options_of_the_tap_reach_the_loss(tmp_path, capture):
    layers = {"loss.layers": ["layer3", "layer4.1.relu"], "loss.capture": capture}
    trained = set()
    others = [{"loss.activation": "relu"}, {"loss.impurity": "collision"}]
    for number, changes in enumerate([{}, *others]):
        folder = tmp_path / str(number)
        train.run(run_options(changes={**layers, **changes}), folder)
        with (folder / "train.csv").open(newline="") as file:
            trained.add(next(csv.DictReader(file))["gini"])  # of the first batch, in the loss
    assert len(trained) == (3 if capture == "input" else 2)  # outputs of a ReLU


@pytest.mark.parametrize("model", ["resnet18", pytest.param("cvt13", marks=pytest.mark.slow)])
def test_inference_is_unchanged(tmp_path, model):
    options = run_options(changes={"model.name": model, "loss.name": "ce+gini+kl"})
    training = train.Training(options, tmp_path, processes.launch(options))
    training.run()
    trained = training.network.eval()
    untouched = models.build(options.model, 10, 8).eval()  # never met discfused

    shapes, expected = ({key: value.shape for key, value in of.state_dict().items()}
                        for of in (trained, untouched))  # fmt: skip
    assert shapes == expected
    hooks = [hooks for module in trained.modules() for kind, hooks in vars(module).items()
             if "hooks" in kind and isinstance(hooks, dict)]  # fmt: skip
    assert hooks and not any(hooks)
    images = (torch.rand(2, 3, 8, 8),)
    graphs = [torch.export.export(of, images).graph_module.code for of in (trained, untouched)]
    assert graphs[0] == graphs[1]
    untouched.load_state_dict(weights(tmp_path))
    assert torch.equal(trained(*images), untouched(*images))


def test_ctrl_c_leaves_a_run_to_go_on_with(tmp_path):
    arguments = [*TINY, "--epochs", "500", "--workers", "1", "--out", "run"]
    process = recipe_cases.start(
        "-m", "discfused", "train", *arguments, cwd=tmp_path, start_new_session=True
    )
    log = tmp_path / "run" / "train.csv"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 1):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers, too
    out, errors = process.communicate()
    assert process.returncode == 130, out + errors
    assert "the same command continues from there (train: with --resume)" in errors
    state = torch.load(tmp_path / "run" / records.CHECKPOINT, weights_only=True)
    assert 1 <= state["step"] < 2000


@pytest.mark.slow
def test_torchrun_starts_the_same_command(tmp_path):
    process = recipe_cases.start(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "discfused",
        "train", *TINY, "--epochs", "3", "--batch-size", "20", "--set", "train.save_every=4",
        "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out.count("after 15 steps") == 1
    (row,) = records.read_rows(tmp_path / "run" / records.RESULT)
    assert row["where"]["processes"] == 2 and row["steps"] == 15
    for part, lines in (("train", 2 + 1), ("test", 1)):  # one process writes
        rows = [*csv.DictReader((tmp_path / "run" / f"{part}.csv").open())]
        assert len({r["step"] for r in rows}) == len(rows) >= lines
