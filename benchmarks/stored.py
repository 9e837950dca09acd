"""Results as they are kept: the environment once, then one line of facts a row.

pytest-benchmark's JSON repeats both in every row, beside statistics of its own.
"""

import json
from pathlib import Path
from typing import NamedTuple

from benchmarks.environment import slug

RESULTS = Path(__file__).resolve().parent / "results"
ENVIRONMENT = (
    "device", "device_type", "threads", "cpu_capability", "torch", "triton", "cuda", "python",
    "discfused", "commit", "date", "mode",
)  # fmt: skip
DIGITS = 4  # significant ones


class Results(NamedTuple):
    environment: dict
    rows: list[dict]
    skipped: list[dict]  # suite, group, competitor, reason

    @property
    def slug(self) -> str:
        return slug(self.environment["device_type"], self.environment["device"])

    def select(self, suites: tuple[str, ...], **facts) -> list[dict]:
        return [
            row
            for row in self.rows
            if row["suite"] in suites and all(row.get(k) == v for k, v in facts.items())
        ]


def load(path: Path) -> Results:
    """Either form: what pytest-benchmark wrote, or what `dump` did."""
    data = json.loads(Path(path).read_text())
    if "benchmarks" not in data:
        return Results(data["environment"], data["rows"], data["skipped"])
    rows = [row["extra_info"] for row in data["benchmarks"]]
    if not rows:
        raise ValueError(f"{path} holds no benchmark rows: run pytest with --benchmark-only")
    environments = [{key: row.get(key) for key in ENVIRONMENT} for row in rows]
    if any(environment != environments[0] for environment in environments):
        raise ValueError(f"{path} holds rows of different devices or versions: expected one run")
    facts = [{k: _rounded(v) for k, v in row.items() if k not in ENVIRONMENT} for row in rows]
    return Results(environments[0], facts, data.get("skipped", []))


def dump(results: Results) -> str:
    """One row a line: a change of one row is a change of one line."""
    lines = [f'{{"environment": {json.dumps(results.environment)},']
    for name in ("rows", "skipped"):
        items = ",\n".join(json.dumps(item) for item in getattr(results, name))
        lines.append(f'"{name}": [\n{items}\n]' + ("," if name == "rows" else "}"))
    return "\n".join(lines) + "\n"


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
