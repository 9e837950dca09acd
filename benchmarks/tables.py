"""Results as Markdown. Nothing is left out because it looks bad: where discfused loses is bold."""

from collections import Counter
from collections.abc import Iterable

from benchmarks.cases import DIRECTIONS
from benchmarks.competitors import COMPILED, COPY, CROSS_ENTROPY, FUSED, FUSED_PREFIX, PLAIN
from benchmarks.stored import Results
from discfused._definitions import IMPURITIES

KINDS = {
    "terms": "both terms",
    "loss": "a call of the whole loss",
    "step": "a training step of ResNet-50 (224 pixels, autocast)",
}
MOST = 2  # times cross-entropy: the goal for a call that computes next to nothing
EXPLAINED = """\
Forward and backward of both terms: the median time, and how many times as long the other forms take
(bold: discfused is slower). `index_add` adds up the classes by `Tensor.index_add_`, `one_hot` by a
matrix product, `unique` as `index_add` after `torch.unique` (where classes outnumber samples),
`embedding_bag` by `F.embedding_bag` of sorted rows; `reference` is this package's readable form,
`compiled-` means `torch.compile`. The copy moves as many bytes as to read the features in forward
and in backward, and to write their gradient. ~: a rough ratio, whose 20 and 80 percentile over
the rounds are a factor of 1.5 or more apart."""
ROUGH = 1.5


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def times(value: list[float] | None) -> str:
    """How many times as long another form takes; bold where that is less than once."""
    if value is None:
        return "-"
    middle = value[1]
    text = rough(value) + (f"{middle:.2g}x" if middle < 10 else f"{middle:.0f}x")
    return text if middle >= 1 else f"**{text}**"


def rough(ratio: list[float]) -> str:
    return "~" if ratio[2] >= ROUGH * ratio[0] else ""


def of_copy(row: dict) -> str:
    ratio = row["others"][COPY]
    return f"{rough(ratio)}{100 * ratio[1]:.0f}%"


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.3g}"


def options(row: dict) -> list[str]:
    impurity = "" if row["impurity"] == "gini" else f", {row['impurity']}"
    return [f"{row['N']} x {row['D']} x {row['C']}", row["dtype"] + impurity]


def environment(results: Results) -> str:
    facts = results.environment
    where = f"{facts['device']}, CUDA {facts['cuda']}, Triton {facts['triton']}"
    if facts["device_type"] == "cpu":
        threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
        where = f"{facts['device']}, {threads} ({facts['cpu_capability']})"
    return (
        f"{where}; torch {facts['torch']}, Python {facts['python']}; discfused "
        f"{facts['discfused']} at {facts['commit']}; {facts['date']}, {facts['mode']} mode."
    )


def brief(results: Results) -> str:
    """What the README shows: beside each fused backend the fastest other form."""
    header = [
        "N x D x C",
        "options",
        "backend",
        "ms",
        "eager",
        "compiled",
        "of a copy's speed",
    ]
    lines = []
    for name in FUSED:
        for row in results.select(
            competitor=name, kind="terms", direction="both", impurity=IMPURITIES[0]
        ):
            others = {other: ratio for other, ratio in row["others"].items() if other in PLAIN}
            fastest = [
                min(
                    (ratio for other, ratio in others.items()
                     if other.startswith(COMPILED) == compiled),
                    key=lambda ratio: ratio[1], default=None,
                )
                for compiled in (False, True)
            ]  # fmt: skip
            lines.append([
                *options(row), name.removeprefix(FUSED_PREFIX), milliseconds(row["seconds"][1]),
                *map(times, fastest), of_copy(row),
            ])  # fmt: skip
    return "\n\n".join([environment(results), table(header, lines)])


def summary(results: Results) -> str:
    """What docs/benchmarks.md shows."""
    faster = [
        f"{' '.join(options(row))} {row['direction']}, {other} ({times(ratio)} the time of {name})"
        for name in FUSED
        for row in results.select(competitor=name)
        for other, ratio in row["others"].items()
        if other not in (COPY, CROSS_ENTROPY, *FUSED) and ratio[1] < 1
    ]
    said = "Another form is faster in " + ("; ".join(faster) if faster else "no case") + "."
    return "\n\n".join([environment(results), *_terms(results), *_beside(results), said])


def _terms(results: Results) -> list[str]:
    rows = results.select(kind="terms")
    others = [name for name in competitors(rows) if name not in (COPY, *FUSED)]
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {(row["competitor"], row["direction"]): row for row in rows if row["case"] == case}
        plain = [found[other, "both"]["peak_bytes"] for other in others if (other, "both") in found]
        for name in FUSED:
            if (name, "both") not in found:
                continue
            row = found[name, "both"]
            ms = [  # `-k both` leaves rows out
                milliseconds(found[name, direction]["seconds"][1])
                if (name, direction) in found else "-"
                for direction in DIRECTIONS
            ]  # fmt: skip
            lines.append([
                *options(row), name.removeprefix(FUSED_PREFIX), f"{ms[2]} ({ms[0]} + {ms[1]})",
                *(times(row["others"].get(other)) for other in others),
                of_copy(row),
                f"{megabytes(row['peak_bytes'])} ({megabytes(min(plain, default=None))})",
            ])  # fmt: skip
    header = ["N x D x C", "options", "backend", "ms (forward + backward)", *others]
    header += ["of the copy's speed", "peak MB (least of the others)"]
    return [EXPLAINED, table(header, lines)] if lines else []


def _beside(results: Results) -> list[str]:
    """What a call costs, and a training step, beside cross-entropy alone."""
    lines = []
    for kind in ("loss", "step"):
        for row in results.select(kind=kind, direction="both"):
            beside = "-"
            if CROSS_ENTROPY in row["others"]:
                factor = 1 / row["others"][CROSS_ENTROPY][1]
                beside = f"{factor:.{4 if kind == 'step' else 3}g}x"
                if kind == "loss" and row["competitor"] in FUSED:
                    beside = f"{beside if factor <= MOST else f'**{beside}**'} (goal: {MOST}x)"
            time = f"{row['seconds'][1] * 1e6:.1f}"
            what = f"{KINDS[kind]}, {', '.join(options(row))}"
            lines.append([what, row["competitor"], time, beside, megabytes(row["peak_bytes"])])
    header = ["forward + backward of", "loss", "microseconds", "beside cross-entropy", "peak MB"]
    return [table(header, lines)] if lines else []


def competitors(rows: list[dict]) -> list[str]:
    found = {row["competitor"] for row in rows}
    return [name for name in (COPY, CROSS_ENTROPY, *PLAIN, *FUSED) if name in found]


def _across(rows: list[dict], clock: str) -> str:
    """Times: cases down, competitors across."""
    names = competitors(rows)
    lines: dict[tuple, dict] = {}
    for row in rows:
        low, middle, high = map(milliseconds, row[clock])
        line = lines.setdefault((*options(row), row["direction"]), {})
        line[row["competitor"]] = f"{middle} ({low} to {high})"
    return table(
        ["N x D x C", "options", "direction", *names],
        ([*key, *(line.get(name, "-") for name in names)] for key, line in lines.items()),
    )


def _kernels(results: Results) -> list[str]:
    """Forward and backward of both terms, kernel by kernel."""
    calls: dict[tuple[str, ...], list[dict]] = {}
    for row in results.kernels:
        calls.setdefault((*options(row), row["backend"]), []).append(row)
    lines = []
    for call, rows in calls.items():
        times = [row["launches"] * row["microseconds"] for row in rows]
        count = sum(row["launches"] for row in rows)
        for row, time in zip(rows, times, strict=True):
            cells = (f"`{row['kernel']}`", f"{row['launches']:g}", f"{row['microseconds']:.1f}")
            lines.append([*call, *cells, f"{time:.1f}"])
        lines.append([*call, "all", f"{count:g}", "", f"{sum(times):.1f}"])
    header = ["N x D x C", "options", "backend", "kernel", "launches", "each", "together"]
    title = "## Microseconds of every kernel (median of its launches), forward and backward"
    return [title, table(header, lines)] if lines else []


def report(results: Results) -> str:
    parts = [f"# Benchmarks: {results.environment['device']}", summary(results)]
    clocks = {"seconds": "", "cuda_graph": ", CUDA graphs"}
    for kind, what in KINDS.items():
        for clock, said in clocks.items():
            rows = [row for row in results.select(kind=kind) if clock in row]
            if rows:
                title = f"## Milliseconds of {what}{said}: median (20 to 80 percentile)"
                parts += [title, _across(rows, clock)]
    parts += _kernels(results)
    if results.skipped:
        why = Counter((row["competitor"], row["reason"]) for row in results.skipped)
        lines = ([*key, str(count)] for key, count in why.items())
        parts += ["## Not measured", table(["competitor", "reason", "cases"], lines)]
    return "\n\n".join(parts) + "\n"
