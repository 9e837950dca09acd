"""Recipes: every option has a value, checks of values, and the identity of runs."""

import recipe_cases

# isort: split
import dataclasses
from pathlib import Path

import pytest

import discfused
from discfused.recipes import sweep, train
from discfused.recipes.options import Options, flat, identity, parse, read
from recipe_cases import run_options

SHIPPED = sorted(path.stem for path in Path(discfused.__file__).parent.glob("recipes/*.yaml"))


def test_recipes_are_shipped():
    assert {"caltech101", "caltech101-cpu", "cifar100", "digits"} <= {*SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_gives_every_option_a_value(name):
    recipe = read(Path(name))
    options = parse(recipe)
    sections = {key: value for key, value in recipe.items() if key != "sweep"}
    assert dataclasses.asdict(options) == sections
    cells = sweep.cells(recipe, {}, seed=0)
    losses = {cell.loss.name for cell in cells}
    assert {"ce", "ce+gini+kl"} <= losses


def test_the_papers_table_is_one_recipe():
    for name in ("caltech101", "cifar100"):
        cells = sweep.cells(read(Path(name)), {}, seed=0)
        pairs = {(cell.model.name, cell.loss.name) for cell in cells}
        assert len(cells) == len(pairs) == len(recipe_cases.MODELS) * len(recipe_cases.LOSSES)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train.Lr": 0.1}, ValueError, "train.Lr is not an option: did you mean train.lr"),
        ({"train.lr": "fast"}, TypeError, "train.lr is 'fast', expected float"),
        ({"train.epochs": 1.5}, TypeError, "train.epochs is 1.5, expected int"),
        ({"train.epochs": True}, TypeError, "train.epochs is True, expected int"),
        ({"train.clip": "x"}, TypeError, "train.clip is 'x', expected float or null"),
        ({"loss.layers": "fc"}, TypeError, "loss.layers is 'fc', expected"),
        ({"loss.name": "gini"}, ValueError, "loss.name is 'gini', expected one of ce, ce.gini"),
        ({"train.batch_size": 1}, ValueError, "train.batch_size is 1, expected at least 2"),
        ({"train.ema": 1.5}, ValueError, "train.ema is 1.5, expected at most 1"),
        ({"model.width": 0}, ValueError, "model.width is 0.0, expected a number > 0"),
        ({"loss.activation": "square"}, ValueError, "'square', expected one of abs, relu"),
        ({"loss.start": 1.5}, ValueError, "loss.start is 1.5, expected a fraction of the training"),
        ({"train.lr_schedule": "step"}, ValueError, "train.lr_steps is null, expected a list"),
        ({"train.lr_steps": [60.5]}, TypeError, "train.lr_steps is .60.5., expected"),
        ({"loss.gini_weight": "inf"}, ValueError, "loss.gini_weight is inf, expected a finite"),
        ({"train.lr": float("inf")}, ValueError, "train.lr is inf, expected a finite number"),
        ({"train.clip": float("nan")}, ValueError, "train.clip is nan, expected a finite number"),
        ({"seed": 2**63}, ValueError, f"seed is {2**63}, expected at most {2**63 - 1}"),
        ({"data.validation_seed": 2**63}, ValueError, "expected at most 9223372036854775807"),
        ({"loss.capture": "input"}, ValueError, "loss.layers is null, expected names of layers"),
        ({"train.select": "best"}, ValueError, "is best, expected data.validation images"),
        ({"data.samples_per_class": 3}, ValueError, "is 3, expected a divisor of"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(changes, error, message):
    with pytest.raises(error, match=message):
        parse(read(Path("digits")), changes)


def test_the_largest_seed_trains(tmp_path):
    seeds = {"seed": 2**63 - 1, "data.validation_seed": 2**63 - 1}
    changes = {"data.samples_per_class": 2, "data.validation": 5}
    assert train.run(run_options(changes={**seeds, **changes}), tmp_path)["steps"] == 1


def test_an_option_left_out_is_an_error():
    recipe = read(Path("digits"))
    del recipe["train"]["clip"]
    with pytest.raises(ValueError, match=r"has no value for train\.clip"):
        parse(recipe)


def test_no_such_recipe(tmp_path):
    with pytest.raises(ValueError, match="expected a YAML file, or one of caltech101"):
        read(tmp_path / "nowhere.yaml")


def test_numbers_as_yaml_reads_them():
    assert run_options(changes={"train.lr": "1e-3"}).train.lr == 0.001
    assert type(run_options(changes={"train.clip": 1}).train.clip) is float


def test_runs_that_may_be_averaged_have_the_same_identity():
    base = run_options()
    assert isinstance(base, Options) and "train.lr" in identity(base)
    same = {"seed": 7, "data.root": "elsewhere", "data.workers": 3, "train.eval_every": 9}
    assert identity(run_options(changes=same)) == identity(base)
    for name, value in {"train.lr": 0.5, "loss.gini_weight": 2.0, "model.stem": "large"}.items():
        assert flat(base)[name] != value
        assert identity(run_options(changes={name: value})) != identity(base)


@pytest.mark.parametrize(
    ("loss", "changes", "matters"),
    [
        ("ce", {"loss.gini_weight": 2.0, "loss.layers": ["layer4"]}, False),
        ("ce", {"loss.label_smoothing": 0.1}, True),
        ("ce+gini", {"loss.kl_weight": 2.0}, False),
        ("ce+kl", {"loss.kl_weight": 2.0}, True),
    ],
)
def test_options_of_a_term_that_is_not_there_do_not_matter(loss, changes, matters):
    plain, changed = (run_options(changes={"loss.name": loss, **c}) for c in ({}, changes))
    assert (identity(plain) != identity(changed)) == matters


def test_a_sweep_is_every_combination_once():
    recipe = read(Path("digits"))
    recipe["sweep"] = [
        {"loss.name": ["ce", "ce+gini"], "loss.gini_weight": [0.1, 1.0]},
        {"model.name": ["cvt13"], "loss.name": ["ce"]},
    ]
    cells = sweep.cells(recipe, {"train.epochs": 2}, seed=3)
    found = [(cell.model.name, cell.loss.name, cell.loss.gini_weight) for cell in cells]
    assert sorted(found)[0] == ("cvt13", "ce", 0.5)
    assert len(found) == 4  # cross-entropy has no weights to vary
    assert {(cell.train.epochs, cell.seed) for cell in cells} == {(2, 3)}
    with pytest.raises(ValueError, match=r"sweep\.seed is 3, expected a list"):
        sweep.cells({**recipe, "sweep": {"seed": 3}}, {}, seed=0)
