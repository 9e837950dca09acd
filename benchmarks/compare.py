"""Two builds of the library, timed in turns on one machine: did any case get slower?

    pip install --no-deps --no-build-isolation --target OLD_FOLDER CHECKOUT_OF_THE_OLD_COMMIT
    pip install --no-deps --no-build-isolation --target NEW_FOLDER .
    python -m benchmarks.compare OLD_FOLDER NEW_FOLDER [--only 1024x2048] [--threshold 1.1]

Each build runs in processes of its own, with its own defaults, which may be another loss; all have
this environment, and an allocator that gives nothing back to the system: a build that keeps memory
itself would otherwise be spared the page faults of large gradients. The processes of two builds
take turns, and ratios are taken within a round. Exit status: 1 if the median ratio of any row is
above the threshold.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from torch import Tensor

from benchmarks.cases import DIRECTIONS, FULL, Case, make_inputs
from benchmarks.timing import calls_in, differentiated, flat, ratio, turn

ROOT = Path(__file__).resolve().parent.parent
TURN = 0.05  # seconds
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**33)}  # glibc
STARTS = 3  # of the processes, for each case: where its memory lies makes a process slow or fast


def _loss(case: Case, backend: str) -> Callable[..., Tensor]:
    """With nothing but what every edition of the public API has."""
    from discfused import disc_terms, fused_disc_loss

    def terms(y: Tensor, x: Tensor) -> Tensor:
        gini, kl = disc_terms(x, y, case.C, backend=backend)
        return gini + kl

    def loss(y: Tensor, x: Tensor, logits: Tensor) -> Tensor:
        return fused_disc_loss(logits, y, x, backend=backend)

    return loss if case.kind == "loss" else terms


def serve(case: Case, backend: str, device: str) -> None:
    """In a build's process: one turn for every line of input."""
    subject = differentiated(_loss(case, backend), make_inputs(case, device))
    count = calls_in(subject, device, TURN)
    gc.disable()
    for _ in sys.stdin:
        print(json.dumps(turn(subject, device, count)), flush=True)


class Build:
    """A process that imports the discfused in `folder`."""

    def __init__(self, folder: Path, working: str, *arguments: str | Case):
        call = f"serve({', '.join(map(repr, arguments))})"
        code = f"from benchmarks.compare import Case, serve; {call}"
        paths = f"{folder.resolve()}{os.pathsep}{ROOT}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=working,
            env=os.environ | KEEP_MEMORY | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def turn(self) -> dict[str, list[float]]:
        print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the process of a build ended: see its message above")
        return json.loads(answer)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def timed(folders: list[Path], case: Case, rounds: int, *arguments: str) -> list[list[dict]]:
    """For each folder, the turns of its processes: direction -> seconds."""
    turns = [[] for _ in folders]
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as working:  # no folder that holds another discfused
            builds = [Build(folder, working, case, *arguments) for folder in folders]
            for number in range(rounds):
                for index in (number % 2, 1 - number % 2):
                    turns[index].append(builds[index].turn())
            for build in builds:
                build.end()
    return turns


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs=2, metavar="FOLDER", help="old, then new")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=8, help="of each start")
    parser.add_argument("--threshold", type=float, default=1.1)
    options = parser.parse_args(arguments)
    cases = [case for case in FULL if options.only in case.name and case.impurity == "gini"]
    if not cases:
        raise SystemExit(f"no case has {options.only!r} in its name")
    for folder in options.folders:
        if not (folder / "discfused").is_dir():
            raise SystemExit(f"{folder} holds no discfused: pip install --target {folder} ...")
    slower = 0
    print("case, direction: ms old, ms new, new / old (20 to 80 percentile)")
    for case in cases:
        turns = timed(options.folders, case, options.rounds, options.backend, options.device)
        for direction in DIRECTIONS:
            old, new = ([seconds[direction] for seconds in build] for build in turns)
            low, middle, high = ratio(new, old)
            slow = middle > options.threshold
            slower += slow
            ms = [1e3 * median(flat(build)) for build in (old, new)]
            print(
                f"{case.name} {direction}: {ms[0]:.4g} {ms[1]:.4g} {middle:.2f} ({low:.2f} to "
                f"{high:.2f}){' SLOWER' if slow else ''}",
                flush=True,
            )
    rows = len(cases) * len(DIRECTIONS)
    print(f"{slower} of {rows} rows are more than {options.threshold}x as slow")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
