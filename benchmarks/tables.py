"""Results as Markdown. Nothing is left out because it looks bad: where discfused loses is bold."""

from collections.abc import Callable, Iterable

from benchmarks.cases import CORE_COPIES, CORE_GOALS
from benchmarks.competitors import BEST_PLAIN, COPY, FUSED
from benchmarks.losses import CROSS_ENTROPY
from benchmarks.stored import Results

TITLES = {
    "core": "Core cases",
    "cases": "Larger cases",
    "sweep_N": "One at a time: N",
    "sweep_D": "One at a time: D",
    "sweep_C": "One at a time: C",
}


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def times(speedup: float | None) -> str:
    if speedup is None:
        return "-"
    text = f"{speedup:.2g}x" if speedup < 10 else f"{speedup:.0f}x"
    return text if speedup >= 1 else f"**{text}**"


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.3g}"


def shape(row: dict) -> str:
    return f"{row['N']} x {row['D']} x {row['C']}"


def environment(results: Results) -> str:
    facts = results.environment
    where = facts["device"]
    if facts["device_type"] == "cpu":
        where += f", {facts['threads']} threads ({facts['cpu_capability']})"
    else:
        where += f", CUDA {facts['cuda']}, Triton {facts['triton']}"
    return (
        f"{where}; torch {facts['torch']}, Python {facts['python']}; discfused "
        f"{facts['discfused']} at {facts['commit']}; {facts['date']}, {facts['mode']} mode."
    )


def _competitors(rows: list[dict]) -> list[str]:
    """In the order of measurement, discfused last."""
    names = dict.fromkeys(row["competitor"] for row in rows)
    return [*(n for n in names if n not in FUSED), *(n for n in names if n in FUSED)]


def pivot(rows: list[dict], cell: Callable[[dict], str]) -> str:
    """Cases down, competitors across."""
    names = _competitors(rows)
    lines: dict[tuple, dict] = {}
    for row in rows:
        key = (shape(row), row["dtype"], row["direction"])
        lines.setdefault(key, {})[row["competitor"]] = cell(row)
    return table(
        ["N x D x C", "dtype", "direction", *names],
        ([*key, *(line.get(name, "-") for name in names)] for key, line in lines.items()),
    )


def summary(results: Results) -> str:
    """What the README shows."""
    both = results.select(("core", "cases"), direction="both")
    others = [n for n in _competitors(both) if n.startswith(("eager", "compile"))]
    rows = []
    for row in both:
        if row["competitor"] not in FUSED:
            continue
        plain = [r.get("peak_bytes") for r in _group(both, row) if r["competitor"] in BEST_PLAIN]
        rows.append([
            shape(row), row["dtype"], row["competitor"].removeprefix("discfused-"),
            milliseconds(row["seconds"]), *(times(row["speedup"].get(n)) for n in others),
            f"{row['percent_of_copy']:.0f}%",
            f"{megabytes(row.get('peak_bytes'))} ({megabytes(min(plain, default=None))})",
        ])  # fmt: skip
    header = ["N x D x C", "dtype", "backend", "ms", *(f"vs {n}" for n in others)]
    header += ["of the copy's speed", "peak MB (plain)"]
    parts = [
        environment(results),
        "Forward + backward of both terms with the default options: median time, and how many "
        "times as long the others take (bold: discfused is slower).",
        table(header, rows),
        *end_to_end(results),
    ]
    return "\n\n".join(parts)


def _group(rows: list[dict], row: dict) -> list[dict]:
    keys = ("suite", "case", "dtype", "direction")
    return [other for other in rows if all(other[key] == row[key] for key in keys)]


def _spread(value: dict) -> str:
    return f"{value['median']:+.3g}% ({value['p20']:+.2g} to {value['p80']:+.2g})"


def end_to_end(results: Results) -> list[str]:
    """The training step, and what a call costs."""
    parts = []
    steps = results.select(("training",), direction="step")
    if steps:
        rows = []
        for step in steps:
            (loss,) = results.select(
                ("training",), direction="loss", competitor=step["competitor"], case=step["case"]
            )
            is_base = step["competitor"] == CROSS_ENTROPY
            rows.append([
                f"{step['case']} ({shape(step)}, {step['dtype']})", step["competitor"],
                milliseconds(step["seconds"]), "-" if is_base else _spread(step["added_percent"]),
                milliseconds(loss["seconds"]), "-" if is_base else _spread(loss["added_percent"]),
                megabytes(step.get("peak_bytes")),
            ])  # fmt: skip
        header = ["training step", "loss", "step, ms", "over cross-entropy", "loss alone, ms"]
        header += ["of it beyond cross-entropy, share of the step", "peak MB of the step"]
        parts.append(table(header, rows))
    host = results.select(("host",), direction="both")
    if host:
        header = ["one call, forward + backward", "loss", "microseconds", "of cross-entropy's"]
        rows = [
            [shape(row), row["competitor"], f"{row['seconds'] * 1e6:.0f}",
             times(1 + row["added_percent"]["median"] / 100)]
            for row in host
        ]  # fmt: skip
        parts.append(table(header, rows))
    return parts


def core(results: Results) -> str:
    """The goals of the CPU backend, in float32 on 2 threads."""
    both = results.select(("core",), direction="both", dtype="float32")
    rows = []
    for row in both:
        if row["competitor"] not in FUSED:
            continue
        plain = [r for r in _group(both, row) if r["competitor"] in BEST_PLAIN]
        if not plain:
            continue
        best = min(plain, key=lambda r: row["speedup"][r["competitor"]])
        copies = CORE_COPIES.get(row["case"])
        rows.append([
            shape(row), row["competitor"], milliseconds(row["seconds"]),
            f"{milliseconds(best['seconds'])} ({best['competitor']})",
            times(row["speedup"][best["competitor"]]), f"{CORE_GOALS[row['case']]}x",
            f"{row['copies_of_x']:.1f}", "-" if copies is None else f"at most {copies}",
        ])  # fmt: skip
    header = ["N x D x C", "backend", "ms", "best plain, ms", "speed-up", "goal on 2 threads"]
    return table([*header, "copies of x", "goal"], rows)


def report(results: Results) -> str:
    parts = [f"# Benchmarks: {results.environment['device']}", summary(results)]
    parts += ["## Core: against the best plain form", core(results)]
    for suite, title in TITLES.items():
        rows = results.select((suite,))
        if not rows:
            continue
        parts += [f"## {title}", "Median milliseconds (20 to 80 percentile):", pivot(rows, _time)]
        least = "Percent of the copy's speed over the least bytes (forward reads x; backward reads"
        parts += [f"{least} x and writes dx), and GB/s:", pivot(rows, _bandwidth)]
        for name in FUSED:
            mine = [row for row in rows if row["competitor"] == name]
            if mine:
                parts += [f"How many times as long as {name}:", _against(mine)]
        peaks = [row for row in rows if "peak_bytes" in row]
        parts += ["Peak megabytes above the inputs:", pivot(peaks, _peak)]
        for clock in ("do_bench", "cuda_graph"):
            timed = [row for row in rows if clock in row]
            if timed:
                parts += [f"Median milliseconds, {clock}:", pivot(timed, _device_time(clock))]
    if results.skipped:
        rows = {(r["suite"], r["competitor"], r["reason"]): None for r in results.skipped}
        parts += ["## Not measured", table(["suite", "competitor", "reason"], map(list, rows))]
    return "\n\n".join(parts) + "\n"


def _time(row: dict) -> str:
    low, middle, high = (milliseconds(row[key]) for key in ("p20", "seconds", "p80"))
    return f"{middle} ({low} to {high})"


def _bandwidth(row: dict) -> str:
    return f"{row['percent_of_copy']:.3g}% ({row['gb_per_s']:.3g})"


def _peak(row: dict) -> str:
    return megabytes(row["peak_bytes"])


def _device_time(clock: str) -> Callable[[dict], str]:
    def cell(row: dict) -> str:
        return milliseconds(row[clock]["median"]) if "median" in row[clock] else "-"

    return cell


def _against(rows: list[dict]) -> str:
    names = dict.fromkeys(name for row in rows for name in row["speedup"])
    names = [name for name in names if not name.startswith(COPY)]
    return table(
        ["N x D x C", "dtype", "direction", *names],
        (
            [shape(row), row["dtype"], row["direction"],
             *(times(row["speedup"].get(name)) for name in names)]
            for row in rows
        ),
    )  # fmt: skip
