"""Did a fused row get slower? Two runs, also of different machines.

    python -m benchmarks.compare OLD.json NEW.json [--threshold 1.25]

Times of two machines do not compare, but their ratios do: how many times as long as the copy, as
eager PyTorch, as cross-entropy in the same run. Printed is the ratio of these ratios, new over old.
A row fails if it got slower by more than the threshold against every one of them, since another
machine may well copy faster and compute slower. Exit status: 1 if a row fails, 2 if no row is in
both files. An oracle (the reference backend) may be slow: it is not guarded.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks import tables
from benchmarks.competitors import COPY, FUSED, PLAIN
from benchmarks.losses import CROSS_ENTROPY
from benchmarks.stored import Results, load

THRESHOLD = 1.25
ANCHORS = (COPY, *(competitor.name for competitor in PLAIN), CROSS_ENTROPY)
# A step hardly sees the loss, so its ratio tells of the network; the loss alone is guarded.
UNGUARDED = "step"

Key = tuple[str, str, str, str, str]


class Change(NamedTuple):
    key: Key
    ratios: dict[str, float]  # anchor -> new ratio over old ratio; above 1 is slower

    def slower(self, threshold: float) -> bool:
        return min(self.ratios.values()) > threshold


def _fused(results: Results) -> dict[Key, dict]:
    return {
        tuple(row[key] for key in ("suite", "case", "dtype", "direction", "competitor")): row
        for row in results.rows
        if row["competitor"] in FUSED and row["direction"] != UNGUARDED
    }


def changes(old: Results, new: Results) -> list[Change]:
    before, after = _fused(old), _fused(new)
    result = []
    for key in before.keys() & after.keys():
        a, b = before[key]["speedup"], after[key]["speedup"]
        # speedup[anchor] = anchor's time / ours, so ours over the anchor's is its inverse
        ratios = {name: a[name] / b[name] for name in ANCHORS if name in a and name in b}
        if ratios:
            result.append(Change(key, ratios))
    return sorted(result)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--threshold", type=float, default=THRESHOLD)
    options = parser.parse_args(arguments)
    old, new = load(options.old), load(options.new)
    found = changes(old, new)
    if not found:
        print("no fused row is in both files: nothing can be compared", file=sys.stderr)
        return 2
    slower = [change for change in found if change.slower(options.threshold)]
    print(f"old: {tables.environment(old)}\nnew: {tables.environment(new)}\n")
    header = ["row", *(f"against {name}" for name in ANCHORS), ""]
    lines = (
        [
            " ".join(change.key),
            *(f"{change.ratios[n]:.2f}" if n in change.ratios else "-" for n in ANCHORS),
            "SLOWER" if change in slower else "",
        ]
        for change in found
    )
    print(tables.table(header, lines))
    for name, here, there in (("old", old, new), ("new", new, old)):
        alone = _fused(here).keys() - _fused(there).keys()
        if alone:
            print(f"\nonly in the {name} run: " + "; ".join(" ".join(key) for key in sorted(alone)))
    print(f"\n{len(slower)} of {len(found)} rows are more than {options.threshold}x as slow")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
