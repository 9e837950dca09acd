"""The tables made of benchmark runs, and whether README and docs show the committed results."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import kernels, report, stored, tables
from benchmarks.cases import FULL
from benchmarks.competitors import COPY, CROSS_ENTROPY, FUSED

ROOT = Path(__file__).resolve().parent.parent
FUSED_ON_CPU = "discfused-cpu"
COMMITTED = sorted(stored.RESULTS.glob("*.json"))


def run(seconds: dict[str, float], case=FULL[0]) -> dict:
    """What pytest-benchmark would write, for one case with these times."""
    device = {"device": "Test Processor", "device_type": "cpu", "threads": 2}
    facts = dict.fromkeys(stored.environment("cpu", "full"), "?") | device
    rows = []
    for direction, (name, time) in itertools.product(("forward", "backward", "both"),
                                                     seconds.items()):  # fmt: skip
        others = {other: [t / time] * 3 for other, t in seconds.items() if other != name}
        row = case._asdict() | {"case": case.name, "competitor": name, "direction": direction}
        row |= {"seconds": [time, time, time], "others": others, "peak_bytes": 10**6}
        rows.append({"name": "...", "extra_info": row})
    skipped = {"case": case.name, "competitor": FUSED[-1], "reason": "no such device"}
    return {"environment": facts, "benchmarks": rows, "skipped": [skipped]}


@pytest.fixture
def write(tmp_path):
    def write(data: dict) -> Path:
        path = tmp_path / "run.json"
        path.write_text(json.dumps(data))
        return path

    return write


TIMES = {COPY: 0.001, "index_add": 0.03, "one_hot": 0.004, FUSED_ON_CPU: 0.005}


def test_report(write, tmp_path, capsys):
    path, folder = write(run(TIMES)), tmp_path / "results"
    report.main([str(path), "--results", str(folder)])
    text = (folder / "cpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "no such device" in text and "Test Processor" in text
    assert "| cpu | 5 (5 + 5) | 6x | **0.8x** | 20% | 1 (1) |" in text  # where it loses is marked
    assert "100 float32 forward, one_hot (**0.8x** the time of discfused-cpu)" in text
    again = stored.load(folder / "cpu.json")
    assert again == stored.load(path)
    assert "| float32 | cpu | 5 | **0.8x** | - | 20% |" in tables.brief(again)  # the fastest other
    assert {file.name for file in folder.iterdir()} >= {"cpu.json", "cpu.md"}
    assert not list(folder.glob(".*"))


def test_a_run_of_some_rows_is_reported(write):
    data = run(TIMES)
    for left_out in ("forward", "backward", "both"):
        rows = data["benchmarks"]
        some = [row for row in rows if row["extra_info"]["direction"] != left_out]
        text = tables.report(stored.load(write(data | {"benchmarks": some})))
        shown = {"forward": "5 (- + 5)", "backward": "5 (5 + -)", "both": "| forward |"}
        assert shown[left_out] in text


def test_kernels_are_profiled_and_reported(write, tmp_path, capsys, monkeypatch):
    found = kernels.profiled(lambda: torch.ones(3) + 1, "cpu")
    calls = kernels.CALLS["cpu"]
    assert len(found["aten::add"]) == calls and min(found["aten::add"]) > 0
    names = "void discfused::cuda::table_kernel<float>(int)", "void native::fill_kernel<float>(T)"
    times = {names[0]: [3.0, 5.0, 4.0] * calls, names[1]: [1.0] * calls}
    monkeypatch.setattr(kernels, "profiled", lambda function, device: times)
    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: False)
    for name, why in (("triton", "no reason"), ("cuda", None)):
        backend = type(kernels.backends.get(name))
        monkeypatch.setattr(backend, "unavailable", lambda self, why=why: why)
    path, folder = write(run(TIMES)), tmp_path / "results"
    kernels.main([str(path)])
    assert "triton is left out: no reason\n" in capsys.readouterr().out
    report.main([str(path), "--results", str(folder)])
    text = (folder / "cpu.md").read_text()
    assert "| 8 x 16 x 10 | float32 | cuda | `table_kernel` | 3 | 4.0 | 12.0 |" in text
    assert "| 8 x 16 x 10 | float32 | cuda | all | 4 |  | 13.0 |" in text
    assert stored.load(folder / "cpu.json") == stored.load(path)


def test_pages_show_a_report(write, tmp_path, capsys, monkeypatch):
    begin, end = report.markers("cpu")
    page, without = tmp_path / "page.md", tmp_path / "without.md"
    page.write_text(f"before\n{begin}\nstale\n{end}\nafter \\1\n")
    without.write_text("nothing\n")
    monkeypatch.setattr(report, "PAGES", {page: tables.summary, without: tables.brief})
    path, folder = str(write(run(TIMES))), tmp_path / "results"
    report.main([path, "--results", str(folder)])
    assert "stale" in page.read_text()  # a run kept elsewhere leaves the pages alone
    monkeypatch.setattr(report, "RESULTS", folder.resolve())
    report.main([path, "--results", str(folder)])
    kept = page.read_text()
    assert kept.startswith("before\n") and kept.endswith("after \\1\n") and "stale" not in kept
    assert report.between(kept, "cpu").strip() == tables.summary(stored.load(folder / "cpu.json"))
    assert "without.md has no place for it: put in the lines" in capsys.readouterr().out
    assert without.read_text() == "nothing\n"


@pytest.mark.parametrize(("factor", "shown"), [(1.5, "1.5x (goal: 2x)"), (3, "**3x** (goal: 2x)")])
def test_a_call_beside_cross_entropy(write, factor, shown):
    case = FULL[0]._replace(kind="loss")
    results = stored.load(write(run({CROSS_ENTROPY: 1e-5, FUSED_ON_CPU: factor * 1e-5}, case)))
    text = tables.summary(results)
    assert f"| {factor * 10:.1f} | {shown} |" in text
    assert "faster in no case" in text  # cross-entropy alone is no other form of the loss


def test_rough_ratios_are_marked():
    assert [tables.times([low, 5, 6]) for low in (3, 4, 4.1)] == ["~5x", "~5x", "5x"]
    assert tables.times([0.1, 0.5, 6]) == "**~0.5x**"
    assert tables.of_copy({"others": {COPY: [0.1, 0.5, 0.6]}}) == "~50%"
    assert tables.of_copy({"others": {COPY: [0.5, 0.5, 0.6]}}) == "50%"


@pytest.mark.parametrize("command", [report.main, kernels.main])
def test_a_file_of_something_else_is_refused(write, tmp_path, command):
    for other in (run({}), {"benchmarks": run(TIMES)["benchmarks"]}, [1]):
        with pytest.raises(SystemExit, match=r"run\.json holds no rows"):
            command([str(write(other))])
    (tmp_path / "run.json").write_text("")  # pytest-benchmark's, of a run that was killed
    for name in ("run.json", "missing.json"):
        with pytest.raises(SystemExit, match=f"{name} cannot be read: "):
            command([str(tmp_path / name)])


@pytest.mark.skipif(not COMMITTED, reason="no results are committed under benchmarks/results")
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_pages_show_the_committed_results(path):
    results = stored.load(path)
    assert results.slug == path.stem
    fix = f"python -m benchmarks.report {path.relative_to(ROOT)}"
    for page, tables_of in report.PAGES.items():
        shown = report.between(page.read_text(), results.slug)
        assert shown.strip() == tables_of(results), f"{page.name} is stale: {fix}"
    assert path.with_suffix(".md").read_text() == tables.report(results), f"stale: {fix}"
