"""The benchmarks measure what they say; the README shows what was measured. Nothing is timed."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last, for `benchmarks`: discfused is the installed one

from benchmarks import compare, report, stored, tables, timing  # noqa: E402
from benchmarks.cases import CORE, CORE_GOALS, SUITES, Case, Plan  # noqa: E402
from benchmarks.competitors import COMPETITORS, FUSED, summed, why_not  # noqa: E402
from benchmarks.losses import criteria, wrong  # noqa: E402
from benchmarks.memory import peak_bytes  # noqa: E402
from benchmarks.verify import disagreement, make_inputs, oracle  # noqa: E402

FEW_CLASSES = Case("few classes", 37, 19, 5)
MANY_CLASSES = Case("many classes", 12, 19, 40)
FUSED_ON_CPU = "discfused-cpu"
COMMITTED = sorted(stored.RESULTS.glob("*.json"))


@pytest.mark.parametrize("case", [FEW_CLASSES, MANY_CLASSES], ids=lambda case: case.name)
@pytest.mark.parametrize(
    "name", [n for n, c in COMPETITORS.items() if c.terms is not None and not c.compiled]
)
def test_competitors_compute_the_same_loss(name, case):
    reason = why_not(name, "cpu", case, full=True)
    if reason is not None:
        pytest.skip(reason)
    inputs = make_inputs(case, "cpu", torch.float32)
    assert disagreement(summed(COMPETITORS[name].terms), inputs, oracle(inputs)) is None


def test_a_wrong_competitor_is_seen():
    inputs = make_inputs(FEW_CLASSES, "cpu", torch.float32)
    expected = oracle(inputs)
    right = summed(COMPETITORS["eager-index_add"].terms)
    assert "value" in disagreement(lambda x, y, C: 1.01 * right(x, y, C), inputs, expected)

    def wrong_gradient(x, y, C):
        return right(x, y, C) + 0.01 * (x - x.detach()).sum()

    assert "gradient" in disagreement(wrong_gradient, inputs, expected)


def test_whole_losses_agree():
    able, skipped = criteria("cpu", FEW_CLASSES)
    N, D, C = FEW_CLASSES[1:]
    logits, features, target = torch.randn(N, C), torch.rand(N, D), torch.randint(0, C, (N,))
    assert wrong(able, logits, target, features) == {}
    assert not able.keys() & skipped.keys()
    able["eager-index_add"] = able["cross_entropy"]
    assert "eager-index_add" in wrong(able, logits, target, features)


def test_every_suite_is_unambiguous():
    assert set(CORE_GOALS) == {case.name for case in CORE}
    names = [case.name for cases in SUITES.values() for case in cases]
    assert len(names) == len(set(names))


def test_turns():
    calls = {"a": [], "b": []}

    def subject(made: list) -> timing.Subject:
        return timing.Subject(lambda: made.append("f"), lambda state: made.append("b"))

    subjects = {name: subject(made) for name, made in calls.items()}
    plan = Plan(seconds=0, min_rounds=3, max_rounds=5, turn=0)
    results = timing.in_turns(subjects, "cpu", plan)
    for name, made in calls.items():
        assert made[:2] == ["f", "b"] and set(results[name]) == {"forward", "backward", "both"}
        for direction in results[name].values():
            assert len(direction.rounds) == 3 and all(len(r) == 1 for r in direction.rounds)


def test_ratios_are_taken_within_rounds():
    slow, fast = timing.Calls([[2.0], [20.0], [4.0]]), timing.Calls([[1.0], [10.0], [1.0]])
    assert timing.ratio(slow, fast) == 2
    assert timing.percentiles([1, 2, 3, 4, 5, 6]) == pytest.approx((2, 3.5, 5))


def test_peak_memory_sees_temporaries():
    x = torch.ones(1000)
    assert peak_bytes(lambda: (x + 1).sum(), "cpu") >= 4000
    assert peak_bytes(lambda: x.view(10, 100), "cpu") == 0


def run(seconds: dict[str, float], case=CORE[0], **environment) -> dict:
    """What pytest-benchmark would write, for one group with these times."""
    facts = dict.fromkeys(stored.ENVIRONMENT, "?") | {
        "device": "Test Processor", "device_type": "cpu", "threads": 2} | environment  # fmt: skip
    rows = []
    for direction, (name, time) in itertools.product(("forward", "both"), seconds.items()):
        speedup = {other: t / time for other, t in seconds.items() if other != name}
        row = {"suite": "core", "competitor": name, "direction": direction, "dtype": "float32"}
        row |= case._asdict() | {"case": case.name, "bytes": 300, "gb_per_s": 300e-9 / time}
        row |= {"seconds": time, "p20": time, "p80": time, "speedup": speedup, "peak_bytes": 10**6}
        row |= {"percent_of_copy": 100 * seconds["copy"] / time, "copies_of_x": 1.5}
        rows.append({"name": "...", "extra_info": row | facts})
    skipped = {"suite": "core", "group": "g", "competitor": FUSED[-1], "reason": "no such device"}
    return {"benchmarks": rows, "skipped": [skipped]}


@pytest.fixture
def write(tmp_path):
    def write(name: str, data: dict) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(data))
        return path

    return write


TIMES = {"copy": 0.001, "eager-index_add": 0.03, "eager-one_hot": 0.004, FUSED_ON_CPU: 0.005}


def test_report(write, tmp_path, capsys):
    readme = tmp_path / "README.md"
    begin, end = report.markers("cpu")
    readme.write_text(f"before\n{begin}\nstale\n{end}\nafter \\1\n")
    path, folder = write("run.json", run(TIMES)), tmp_path / "results"
    report.main([str(path), "--results", str(folder), "--readme", str(readme)])
    text = (folder / "cpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "no such device" in text and "Test Processor" in text
    assert "| 6x | **0.8x** |" in text  # the case it loses is there, and marked
    assert "4 (eager-one_hot) | **0.8x** | 2x | 1.5 |" in text  # the best plain form
    kept = readme.read_text()
    assert kept.startswith("before\n") and kept.endswith("after \\1\n") and "stale" not in kept
    again = stored.load(folder / "cpu.json")
    assert again == stored.load(path)
    assert report.between(kept, "cpu") == tables.summary(again)
    assert {file.name for file in folder.iterdir()} >= {"cpu.json", "cpu.md"}
    assert not list(folder.glob(".*"))


def test_report_without_a_place_in_the_readme(write, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n")
    arguments = ["--results", str(tmp_path / "results"), "--readme", str(readme)]
    report.main([str(write("run.json", run(TIMES))), *arguments])
    assert "<!-- benchmarks:cpu:begin -->" in capsys.readouterr().out
    assert readme.read_text() == "nothing\n"


def test_a_report_kept_elsewhere_leaves_the_readme_alone(write, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "README", tmp_path / "missing" / "README.md")
    report.main([str(write("run.json", run(TIMES))), "--results", str(tmp_path / "results")])
    assert not report.README.exists()


def test_results_of_two_machines_do_not_mix(write):
    mixed = run(TIMES)
    mixed["benchmarks"] += run(TIMES, device="another")["benchmarks"]
    with pytest.raises(ValueError, match="different devices"):
        stored.load(write("mixed.json", mixed))


def test_compare(write, capsys):
    old = write("old.json", run(TIMES))
    # A machine twice as fast: nothing changed.
    same = write("same.json", run({name: t / 2 for name, t in TIMES.items()}))
    assert compare.main([str(old), str(same)]) == 0
    # Copies got faster, arithmetic did not: one anchor alone does not condemn.
    copier = write("copier.json", run(TIMES | {"copy": 0.0001}))
    assert compare.main([str(old), str(copier)]) == 0
    slower = write("slower.json", run(TIMES | {FUSED_ON_CPU: 0.008}))
    assert compare.main([str(old), str(slower)]) == 1
    assert "SLOWER" in capsys.readouterr().out
    assert compare.main([str(old), str(slower), "--threshold", "2"]) == 0
    other = write("other.json", run(TIMES, case=CORE[1]))
    assert compare.main([str(old), str(other)]) == 2


def test_commands_run():
    for command in ("benchmarks.report", "benchmarks.compare"):
        result = subprocess.run(
            [sys.executable, "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not COMMITTED, reason="no results are committed under benchmarks/results")
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_readme_shows_the_committed_results(path):
    results = stored.load(path)
    assert results.slug == path.stem
    shown = report.between((ROOT / "README.md").read_text(), results.slug)
    fix = f"python -m benchmarks.report {path.relative_to(ROOT)}"
    assert shown == tables.summary(results), f"the README's table is stale: {fix}"
    assert path.with_suffix(".md").read_text() == tables.report(results), f"stale: {fix}"
