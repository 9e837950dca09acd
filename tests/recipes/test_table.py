"""Tables of runs: cells, pairs and verdicts."""

import recipe_cases  # noqa: F401

# isort: split
import json
import math
import statistics

import pytest
from scipy import stats

from discfused.recipes import table

OPTIONS = {
    "data.name": "digits", "model.name": "resnet18", "train.lr": 0.1, "loss.name": "ce",
    "loss.label_smoothing": 0.0,
}  # fmt: skip
TERMS = {"loss.name": "ce+gini", "loss.gini_weight": 0.3}


def rows(accuracies, finished="2026-01-01T00:00:00+00:00", processes=1, **changes):
    options = {**OPTIONS, **changes}
    return [
        {"seed": seed, "accuracy": accuracy, "class_accuracy": accuracy - 1, "gini": 0.5,
         "kl": 0.01, "live": 1.0, "options": options, "finished": finished,
         "where": {"processes": processes}}
        for seed, accuracy in enumerate(accuracies) if accuracy is not None
    ]  # fmt: skip


def compared(*groups):
    cells = table.group([row for group in groups for row in group])
    return [paired for cell in cells if (paired := table.compare(cell, cells))]


PLAIN = [50.0, 52.0, 51.0, 53.0]


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ([51.1, 52.9, 52.2, 54.0], "gain"),
        ([48.9, 51.1, 49.8, 52.0], "loss"),
        ([51.0, 51.0, 52.0, 53.5], "undecided"),
    ],
)
def test_the_difference_is_paired_by_seed(accuracies, verdict):
    (paired,) = compared(rows(PLAIN), rows(accuracies, **TERMS))
    differences = [a - b for a, b in zip(accuracies, PLAIN, strict=True)]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / 2  # sqrt(4)
    half = stats.t.ppf(0.975, df=3) * error
    assert paired.pairs == 4 and paired.mean == pytest.approx(mean)
    assert (paired.low, paired.high) == pytest.approx((mean - half, mean + half))
    assert paired.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, df=3))
    assert paired.verdict == verdict


def test_only_seeds_of_both_are_compared():
    (paired,) = compared(rows([50.0, 52.0, None, 90.0]), rows([51.0, None, 20.0, 91.5], **TERMS))
    assert paired.pairs == 2 and paired.mean == pytest.approx(1.25)


def test_one_pair_decides_nothing():
    (paired,) = compared(rows([50.0]), rows([80.0], **TERMS))
    assert paired.verdict == "undecided" and math.isnan(paired.p)
    cells = table.group(rows([50.0]) + rows([80.0], **TERMS))
    assert "undecided, +30.00 points in 1 pair, too little to tell" in table.markdown(cells)


def test_cells_are_compared_with_the_cross_entropy_that_is_like_them():
    groups = [
        rows(PLAIN), rows([a + 1 + a % 2 / 10 for a in PLAIN], **TERMS),
        rows([9.0, 8.0], **{"train.lr": 0.5}), rows([1.0, 2.0], **{"train.lr": 0.5}, **TERMS),
        rows([7.0, 9.0], **{"train.lr": 0.9}, **TERMS),  # has no cross-entropy to compare with
        rows([53.0, 54.5], **{"loss.label_smoothing": 0.1}),  # an alternative to the terms
        rows([54.0, 56.5], **{"loss.label_smoothing": 0.1}, **TERMS),  # both
    ]  # fmt: skip
    found = sorted((paired.pairs, round(paired.mean, 3)) for paired in compared(*groups))
    assert found == [(2, -7.0), (2, 1.5), (2, 2.75), (4, 1.05)]


def test_more_processes_are_another_batch_size():
    apart = rows(PLAIN), rows([51.1, 52.9, 52.2, 54.0], processes=8, **TERMS)
    assert compared(*apart) == []
    text = table.markdown(table.group([row for group in apart for row in group]))
    assert "| ce | processes=1 | 4 |" in text and "| ce+gini | processes=8 | 4 |" in text


def test_failed_runs_are_named_with_the_verdict():
    failed = {"failed": "the loss is nan", "options": {**OPTIONS, **TERMS}, "seed": 4}
    text = table.markdown(table.group([*rows(PLAIN), *rows([51.1, 53.2, 52.2], **TERMS), failed]))
    assert "over 3 pairs. 1 more failed and are not in this." in text


def test_the_table_shows_means_spread_and_what_varies():
    heavy = {**TERMS, "loss.gini_weight": 1.0}
    light, heavier = (
        rows([51.1, 52.9, 52.2, 54.0], **TERMS),
        rows([51.0, 51.0, 52.0, 53.5], **heavy),
    )
    cells = table.group(rows(PLAIN) + light + heavier)
    text = table.markdown(cells)
    lines = text.splitlines()
    assert (
        "| digits | resnet18 | ce | - | 4 | 51.50 +- 1.29 | 50.50 +- 1.29 | 0.500 +- 0.000" in text
    )
    assert "| digits | resnet18 | ce+gini | gini_weight=0.3 | 4 | 52.55 +- 1.22 |" in text
    assert "| +1.05 (+0.84 to +1.26) | 0.00051 |" in text
    assert [line.count("|") for line in lines[:5]] == [13] * 5
    assert "here are 2" in text
    assert "- digits, resnet18, ce+gini, gini_weight=0.3: gain, +1.05" in text
    assert "- digits, resnet18, ce+gini, gini_weight=1.0: undecided" in text


def test_what_a_cell_is_compared_with_is_named():
    smooth = {"loss.label_smoothing": 0.1}
    both = rows([51.0, 51.0, 52.0, 53.5], **TERMS, **smooth)
    cells = table.group(rows(PLAIN) + rows([53.0, 54.0, 53.0, 55.0], **smooth) + both)
    text = table.markdown(cells)
    words = "against ce with label_smoothing=0.1"
    assert text.count(words) == 2  # the row and the sentence of the terms beside label smoothing
    assert f"| -1.88 (-3.23 to -0.52) {words} |" in text
    assert "number of threads" not in text
    other = [{**row, "where": {"threads": 2}} for row in rows([50.0], **TERMS)]
    assert "2 combinations of PyTorch's version and number" in table.markdown(
        table.group(both + other)
    )


def test_only_options_that_tell_cells_of_one_network_apart_are_named():
    elsewhere = {"data.name": "cifar100", "train.lr": 0.7}
    text = table.markdown(table.group(rows(PLAIN) + rows(PLAIN, **elsewhere)))
    assert "train.lr" not in text and "lr=" not in text
    text = table.markdown(table.group(rows(PLAIN) + rows(PLAIN, **{"train.lr": 0.7})))
    assert "| ce | lr=0.1 | 4 |" in text and "| ce | lr=0.7 | 4 |" in text


def test_a_folder_of_committed_rows_is_enough(tmp_path):
    again = rows([60.0], finished="2026-01-02T00:00:00+00:00")  # seed 0 was run again
    for name, group in (("a", rows(PLAIN)), ("b", rows(PLAIN, **TERMS)), ("c", again)):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in group)
        (tmp_path / name / table.ROWS).write_text(lines)
    # Half a line of a run that is writing its result, and another command's rows.
    (tmp_path / "a" / ".result.1.jsonl").write_text('{"seed"')
    (tmp_path / "discfused-demo.jsonl").write_text('{"loss": "ce"}\n')
    text = table.make(tmp_path)
    assert len((tmp_path / table.ROWS).read_text().splitlines()) == 8
    assert "| 4 | 54.00 +- 4.08 |" in text  # 60, 52, 51, 53
    assert table.make(tmp_path) == text == (tmp_path / table.TABLE).read_text().rstrip("\n")
    assert (tmp_path / table.PICTURE).stat().st_size > 10_000
