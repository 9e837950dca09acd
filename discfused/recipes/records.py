"""The files of a run in its folder.

recipe.yaml     every option                    environment.json  versions, commit, device
train.csv       losses and terms on batches     test.csv          on the test images
validation.csv  on held-out images, if any      tensorboard/      the same, for TensorBoard
checkpoint.pt   to resume, until the run ends   weights.pt        state_dict of the tested network
result.jsonl    the result, one line
"""

import contextlib
import csv
import dataclasses
import datetime
import fcntl
import hashlib
import io
import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

import discfused
from discfused import doctor
from discfused._files import write_atomically
from discfused.backends import _library
from discfused.recipes.options import Options, identity

PACKAGES = ("torchvision", "lightning", "transformers", "torchmetrics")
ON_IMAGES = ["accuracy", "class_accuracy", "ce", "gini", "kl", "live"]
COLUMNS = {
    "train": ["lr", "gini_weight", "kl_weight", "ce", "gini", "kl", "live", "accuracy"],
    "validation": ON_IMAGES,
    "test": ON_IMAGES,
}
RECIPE, RESULT = "recipe.yaml", "result.jsonl"
CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.pt"


def name(options: Options) -> str:
    """The name of a run's folder. Runs with different `identity` have different names."""
    values = json.dumps(identity(options), sort_keys=True).encode()
    digest = hashlib.sha256(values).hexdigest()[:8]
    parts = options.data.name, options.model.name, options.loss.name, digest
    return "-".join([*parts, f"seed{options.seed}"])


class InUse(RuntimeError):
    """Another process runs in the folder."""


class OtherRun(RuntimeError):
    """The folder contains another run than the requested one."""


class Damaged(ValueError):
    """A file of the run cannot be read, as after a crash of the machine."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM ended the run between two steps, or in the final test."""

    def __init__(self, step: int, steps: int):
        super().__init__(f"stopped after step {step} of {steps}; the same command continues "
                         "from there (train: with --resume)")  # fmt: skip


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """A lock on the folder. The system releases it if the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{folder} is in use by another process: pass another --out") from None
        for left_over in folder.glob(".*.pt"):  # from a process that was killed while writing
            left_over.unlink()
        yield


def finished(folder: Path, options: Options, resume: bool) -> dict[str, Any] | None:
    """The row of the run if it has ended, None if it can start or continue."""
    result = folder / RESULT
    if not resume and (result.exists() or (folder / CHECKPOINT).exists()):
        raise OtherRun(f"{folder} already contains a run: pass --resume to continue it, or "
                       "another --out")  # fmt: skip
    if not result.exists():
        return None
    row = read_rows(result)[0]
    same_run(row["options"] | {"seed": row["seed"]}, options, folder)
    return row


def same_run(stored: dict[str, Any], options: Options, folder: Path) -> None:
    wanted = identity(options) | {"seed": options.seed}
    changed = [f"{name} {stored.get(name)!r} -> {wanted.get(name)!r}"
               for name in stored | wanted if stored.get(name) != wanted.get(name)]  # fmt: skip
    if changed:
        raise OtherRun(f"{folder} contains a run with other options ({'; '.join(changed)}): "
                       "pass the same options to continue it, or another --out")  # fmt: skip


def checkpoint(
    folder: Path, options: Options, processes: int
) -> dict[str, Any] | OtherRun | Damaged | None:
    """The checkpoint of the run, None without one, or the error if it cannot be continued."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    file = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # of many types: the content is arbitrary
        state = None
    if not (isinstance(state, dict) and isinstance(state.get("options"), dict)):
        return Damaged(f"{path} is damaged, or not a checkpoint of a run: delete it to start this "
                       "run again")  # fmt: skip
    try:
        same_run(state["options"], options, folder)
    except OtherRun as error:
        return error
    if state["processes"] != processes:
        return OtherRun(f"{folder} was started by {state['processes']} processes, expected the "
                        f"same number, not {processes}")  # fmt: skip
    return state


def describe(options: Options, folder: Path, device: torch.device, world_size: int) -> None:
    recipe = yaml.safe_dump(dataclasses.asdict(options), sort_keys=False)
    write_atomically(folder / RECIPE, lambda path: path.write_text(recipe))
    described = json.dumps(environment(device, world_size), indent=1) + "\n"
    write_atomically(folder / "environment.json", lambda path: path.write_text(described))


def environment(device: torch.device, world_size: int) -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": world_size,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "discfused": discfused.__version__,
        "commit": _library.commit(),
        "torch": torch.__version__,  # its metadata may lack the build, such as +cpu
        "cuda": torch.version.cuda or torch.version.hip,
        **{package: doctor.version(package) for package in PACKAGES},
    }


def write_result(
    folder: Path, options: Options, result: dict[str, Any], where: dict[str, Any]
) -> dict[str, Any]:
    """Writes result.jsonl atomically. Returns the row of the run."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    row = {"seed": options.seed, **result, "options": identity(options), "where": where,
           "finished": now}  # fmt: skip
    line = json.dumps(row, allow_nan=False) + "\n"
    write_atomically(folder / RESULT, lambda path: path.write_text(line))
    return row


def read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except ValueError:  # also of bytes that are not text
        rows = []
    if not rows or not all(isinstance(row, dict) and {"options", "seed"} <= {*row} for row in rows):
        raise Damaged(f"{path} is damaged, expected a run in each line: delete it (a run without "
                      "a result can start again)")  # fmt: skip
    return rows


def save(state: dict[str, Any], path: Path) -> None:
    """torch.save, atomically. On a full disk its own writer raises an error about positions."""
    file = io.BytesIO()
    torch.save(state, file)
    write_atomically(path, lambda temporary: temporary.write_bytes(file.getbuffer()))


class Log:
    """Logs to a CSV file and TensorBoard, by step. Rows after `start` are deleted first."""

    def __init__(self, folder: Path, part: str, start: int):
        self.part, columns = part, ["step", *COLUMNS[part]]
        path = folder / f"{part}.csv"
        kept = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file)
                        if None not in row.values() and int(row["step"]) <= start]  # fmt: skip

        def rewrite(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(kept)

        write_atomically(path, rewrite)
        self.file = path.open("a", newline="")
        self.csv = csv.DictWriter(self.file, columns)
        self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1,
                                         filename_suffix=f".{part}")  # fmt: skip

    def write(self, step: int, values: dict[str, float]) -> None:
        self.csv.writerow({"step": step, **values})
        self.file.flush()
        for column, value in values.items():
            if math.isfinite(value):
                self.tensorboard.add_scalar(f"{self.part}/{column}", value, step)

    def close(self) -> None:
        self.file.close()
        self.tensorboard.close()
