"""Sweeps: only missing runs, after a kill or in several processes; and the command line."""

import recipe_cases

# isort: split
import io
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.fabric import accelerators

from discfused import backends, cli
from discfused.recipes import processes, records, sweep, table, train
from discfused.recipes.options import read
from recipe_cases import one_thread, run_options  # noqa: F401 (a fixture)

CHANGES = {**recipe_cases.SMALL, **recipe_cases.OF_DATA["digits"], "train.epochs": 2}
TINY = [
    argument
    for name, value in {**CHANGES, "train.save_every": 1}.items()
    for argument in ("--set", f"{name}={value}")
]
TIMED = ("seconds", "finished")


def recipe(losses=("ce", "ce+gini+kl")):
    return {**read(Path("digits")), "sweep": {"loss.name": [*losses]}}


def untimed(folder):
    rows = table.collect(folder)
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def start(folder, *arguments):
    command = ["-m", "discfused", "sweep", *arguments, "--out", "out"]
    return recipe_cases.start(*command, cwd=folder)


def wait(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def test_a_killed_sweep_ends_in_the_same_table(tmp_path):
    small = recipe_cases.Datasets(tmp_path)
    changes = {
        **recipe_cases.SMALL, **recipe_cases.OF_DATA["caltech101"], "train.epochs": 6,
        "data.root": str(small.root), "data.split": str(small.split), "train.save_every": 1,
    }  # fmt: skip
    given = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    recipe = read(Path("caltech101-cpu"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    runs = 2 * len(sweep.cells(recipe, changes, seed=0))
    assert sweep.run(recipe, 2, whole, changes) == f"{runs} runs done, 0 were there"

    out = killed / "out"
    process = start(killed, "caltech101-cpu", "--seeds", "2", *given)
    wait(
        process, lambda: len([*out.glob("*/result.jsonl")]) >= 2 and [*out.glob("*/checkpoint.pt")]
    )
    process.kill()
    process.communicate()
    there = len([*out.glob("*/result.jsonl")])
    assert 2 <= there < runs
    text = sweep.run(recipe, 2, out, changes)
    assert text == f"{runs - there} runs done, {there} were there"

    assert untimed(out) == untimed(whole)
    assert table.make(out) == table.make(whole)
    assert (out / "table.md").read_text() == (whole / "table.md").read_text()
    assert sweep.run(recipe, 2, out, changes) == f"0 runs done, {runs} were there"
    assert untimed(out) == untimed(whole)  # table's own results.jsonl counts no run twice


def test_a_run_of_another_process_is_left_to_it(tmp_path):
    taken = tmp_path / records.name(sweep.cells(recipe(), CHANGES, seed=0)[0])
    with records.lock(taken):
        text = sweep.run(recipe(), 1, tmp_path, CHANGES)
        assert text == "1 runs done, 0 were there, 1 are under way in other processes"
    assert sweep.run(recipe(), 1, tmp_path, CHANGES) == "1 runs done, 1 were there"


def test_a_run_that_another_process_ends_meanwhile_is_not_counted_twice(tmp_path, monkeypatch):
    launch = processes.launch

    def late(options):  # between the look for a result and the lock
        monkeypatch.undo()
        train.run(options, tmp_path / records.name(options))
        return launch(options)

    monkeypatch.setattr(processes, "launch", late)
    assert sweep.run(recipe(["ce"]), 1, tmp_path, CHANGES) == "0 runs done, 1 were there"


@pytest.mark.slow
def test_several_processes_share_a_sweep(tmp_path):
    processes = [start(tmp_path, "digits", "--seeds", "3", *TINY) for _ in range(3)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    done = [int(text.split(": ")[1].split()[0]) for text in said]
    assert sum(done) == len(table.collect(tmp_path / "out")) == 24


def test_a_run_that_diverges_is_a_result_and_not_the_end(tmp_path):
    grid = recipe()
    grid["sweep"] = {"train.lr": [1e30, 0.001], "loss.name": ["ce"]}
    changes = {**CHANGES, "train.clip": None}
    assert sweep.run(grid, 1, tmp_path, changes) == "1 runs done, 0 were there, 1 failed"
    assert sweep.run(grid, 1, tmp_path, changes) == "0 runs done, 2 were there"
    assert "| lr=1e+30 | 0 + 1 failed | - |" in table.make(tmp_path)
    options = sweep.cells(grid, changes, seed=0)[0]
    with pytest.raises(FloatingPointError, match="the loss is"):
        train.run(options, tmp_path / records.name(options), resume=True)


def test_a_run_that_fails_in_its_final_test_leaves_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(train.Training, "check_finite", lambda *arguments: None)
    changes = {**CHANGES, "train.clip": None, "train.lr": 1e30}
    assert sweep.run(recipe(["ce"]), 1, tmp_path, changes) == "0 runs done, 0 were there, 1 failed"
    assert [*tmp_path.glob("*/result.jsonl")] and not [*tmp_path.glob("*/checkpoint.pt")]


def damaged(kind):
    if kind == "foreign":
        file = io.BytesIO()
        torch.save({"weight": torch.zeros(3)}, file)
        return file.getvalue()
    return {"empty": b"", "random": bytes(range(256)) * 9, "torn": b"PK\3\4" + bytes(99)}[kind]


@pytest.mark.parametrize("kind", ["empty", "random", "torn", "foreign"])
def test_a_damaged_checkpoint_costs_one_run_of_a_sweep(tmp_path, capsys, kind):
    folder = tmp_path / records.name(sweep.cells(recipe(), CHANGES, seed=0)[0])
    folder.mkdir()
    (folder / records.CHECKPOINT).write_bytes(damaged(kind))
    assert sweep.run(recipe(), 1, tmp_path, CHANGES) == "1 runs done, 0 were there, 1 failed"
    assert f"{folder / records.CHECKPOINT} is damaged, or not a" in capsys.readouterr().out
    (folder / records.CHECKPOINT).unlink()  # as the message says
    assert sweep.run(recipe(), 1, tmp_path, CHANGES) == "1 runs done, 1 were there"


@pytest.mark.parametrize("content", [b"", b'{"seed": 0, "opti', b"\xff\xfe", b"3\n", b"{}\n"])
def test_a_damaged_result_is_named(tmp_path, capsys, content):
    result = tmp_path / records.RESULT
    result.write_bytes(content)
    for command in ["train", "--data", "digits", *TINY, "--resume", "--out"], ["table"]:
        assert cli.main([*command, str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"discfused: {result} is damaged") and error.count("\n") == 1


def test_the_three_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "digits", "--model", "resnet17", "--epochs", "1", *TINY]
    for loss in ("ce", "ce+gini"):
        run = ["train", *arguments, "--loss", loss, "--seed", "1", "--max-steps", "3"]
        assert cli.main(run) == 0
        assert "after 2 steps" in capsys.readouterr().out
        assert cli.main(run) == 1
        assert "pass --resume" in capsys.readouterr().err
    assert cli.main(["sweep", "digits", "--seeds", "1", *TINY, "--out", "runs"]) == 0
    assert "8 runs done, 0 were there\nnow: discfused table runs" in capsys.readouterr().out
    assert cli.main(["table", "runs"]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "runs/table.md").read_text()
    assert printed.count("\n| digits | resnet17 |") == 2
    assert printed.count("\n| digits | resnet18 |") == 8
    assert printed.count("too little to tell") == 8
    assert (tmp_path / "runs/table.png").stat().st_size > 10_000


def test_seeds_that_no_search_has_seen(tmp_path):
    out = tmp_path / "runs"
    given = ["digits", "--seeds", "2", "--first-seed", "5", *TINY, "--grid", "loss.name=[ce]"]
    assert cli.main(["sweep", *given, "--out", str(out)]) == 0
    assert [row["seed"] for row in table.collect(out)] == [5, 6]


def test_a_grid_in_place_of_the_recipes(tmp_path):
    given = ["digits", "--seeds", "1", *TINY, "--out", str(tmp_path)]
    given += ["--grid", "train.lr=[0.01, 0.1]", "--grid", "loss.name=[ce, ce+kl]"]
    assert cli.main(["sweep", *given]) == 0
    found = {(row["options"]["train.lr"], row["options"]["loss.name"])
             for row in table.collect(tmp_path)}  # fmt: skip
    assert found == {(lr, loss) for lr in (0.01, 0.1) for loss in ("ce", "ce+kl")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "neither --data nor --recipe is given"),
        (["train", "--data", "caltech101"], "--data-root DIR with DIR/caltech101/101_Object"),
        (["train", "--data", "digits", "--set", "train.lr"], "expected OPTION=VALUE"),
        (["train", "--data", "digits", "--set", "lr=1"], "lr is not an option"),
        (["train", "--data", "digits", "--batch-size", "999"], "expected at most the 60"),
        (["train", "--data", "digits", "--set", "loss.layers=[nowhere]"], "not in the model; near"),
        (["sweep", "digits", "--seeds", "0"], "--seeds is 0, expected at least 1"),
        (["sweep", "digits", "--first-seed", "-1"], "--first-seed is -1, expected at least 0"),
        (["sweep", "digits", "--grid", "seed"], "--grid is 'seed', expected OPTION=VALUE"),
        (["sweep", "digits", "--grid", "seed=[3]"], "seed is set by --seeds and --first-seed"),
        (["sweep", "digits", "--set", "seed=3"], "seed is set by --seeds and --first-seed"),
        (["sweep", "digits", "--grid", "train.lr=0.1"], "sweep.train.lr is 0.1, expected a list"),
        (["train", "--data", "digits", "--set", "train.lr=[1"], "--set train.lr is not valid YAML"),
        (["train", "--recipe", "cut.yaml"], "recipe 'cut.yaml' is not valid YAML: line 2, column"),
        (["train", "--recipe", "picture.yaml"], "recipe 'picture.yaml' is not valid YAML: "),
        (["train", "--data", "digits", "--accelerator", "gpu"], "train.accelerator is 'gpu', but"),
        (["sweep", "digits", "--accelerator", "mps"], "train.accelerator is 'mps', but"),
        (["train", "--data", "digits", "--set", "loss.backend=triton"], "backend is 'triton', but"),
        (["sweep", "digits", "--set", "loss.backend=fast"], "backend is 'fast', expected one of"),
        (["sweep", "flat.yaml"], "sweep is 'loss.name', expected OPTION: LIST"),
        (["sweep", "nowhere.yaml"], "expected a YAML file, or one of caltech101"),
        (["table", "."], "has no results"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("cut.yaml").write_text("data: {name: digits\ntrain: [")
    Path("flat.yaml").write_text("sweep: [loss.name]")
    Path("picture.yaml").write_bytes(b"\x89PNG\r\n")
    for accelerator in (accelerators.CUDAAccelerator, accelerators.MPSAccelerator):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: False))
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("discfused: ") and "\n" not in error


def test_a_backend_of_the_environment_that_cannot_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "triton")
    backends._resolved.cache_clear()
    try:
        assert cli.main(["train", "--data", "digits", *TINY, "--out", str(tmp_path)]) == 1
    finally:
        backends._resolved.cache_clear()
    error = capsys.readouterr().err
    assert error.startswith("discfused: DISCFUSED_BACKEND is 'triton', but it cannot run here: ")
    assert error.count("\n") == 1 and not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("package", "advice"),
    [("lightning", "pip install 'discfused[recipes]'"), ("torchvision", "torchvision 'torch==")],
)
def test_without_a_package_the_commands_say_what_to_install(package, advice, tmp_path):
    script = (
        "import sys; sys.modules[sys.argv[1]] = None; from discfused import cli; "
        "sys.exit(cli.main(['train', '--data', 'digits']))"
    )
    process = recipe_cases.start("-c", script, package, cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert f"the recipes need {package}: pip install" in errors and advice in errors


def test_ctrl_c_ends_with_how_to_go_on(tmp_path, monkeypatch, capsys):
    step = train.Training.train_step

    def interrupted_step(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(train.Training, "train_step", interrupted_step)
    assert cli.main(["train", "--data", "digits", *TINY, "--out", str(tmp_path)]) == 130
    assert "after step 1 of 4; the same command continues" in capsys.readouterr().err
    monkeypatch.undo()
    row = train.run(run_options(changes=CHANGES), tmp_path, resume=True)
    assert row["steps"] == 4
