"""The command line, also as `python -m discfused`: doctor, demo, and those of the recipes."""

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import discfused
from discfused import backends
from discfused._definitions import IMPURITIES
from discfused.backends import _library
from discfused.functional import GINI_WEIGHT, KL_WEIGHT
from discfused.recipes import commands as commands_of_recipes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="discfused", description=discfused.__doc__)
    parser.add_argument("--version", action="version", version=discfused.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, refuse=command.error)
        return command

    add("doctor", doctor, "tell what is installed, which backend runs, and why not a faster one")
    demo = add("demo", run_demo, "train on handwritten digits, with and without the two terms")
    for name, number, what in (
        ("seeds", 8, "runs of each loss"),
        ("images", 6, "of each digit to learn from, 100 at most"),
        ("epochs", 200, "of each run"),
    ):
        demo.add_argument(f"--{name}", type=int, default=number, metavar="N",
                          help=f"{what} (default: %(default)s)")  # fmt: skip
    for term, weight in (("gini", GINI_WEIGHT), ("kl", KL_WEIGHT)):
        demo.add_argument(f"--{term}-weight", type=float, default=weight, metavar="X",
                          help="of the term in the loss (default: %(default)s)")  # fmt: skip
    demo.add_argument("--impurity", choices=IMPURITIES, default=IMPURITIES[0],
                      help="what the Gini term is (default: %(default)s)")  # fmt: skip
    demo.add_argument("--backend", metavar="NAME", help="see doctor (default: the fastest on CPU)")
    demo.add_argument("--out", type=Path, default=Path("discfused-demo"), metavar="DIR",
                      help="where the picture goes (default: %(default)s)")  # fmt: skip
    demo.add_argument("--json", type=Path, metavar="FILE", help="write all runs there")
    commands_of_recipes.add_to(add)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        if sys.stdout is not None:  # closed, as by >&-
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # `discfused doctor | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # not at exit either
        return 1


def run_demo(options: argparse.Namespace) -> int:
    try:
        from discfused.recipes import demo  # needs the packages of the extra
    except ImportError as error:
        print(f"the demo needs {error.name}: pip install 'discfused[demo]'")
        return 1
    names = (field.name for field in dataclasses.fields(demo.Options))
    try:
        checked = demo.Options(**{name: getattr(options, name) for name in names})
    except (ValueError, RuntimeError) as error:
        options.refuse(str(error))
    demo.run(checked)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """One fact a line, so that a bug report can quote it whole."""
    commit = _library.commit() or "unknown"
    print(f"discfused {discfused.__version__}, commit {commit}, {Path(discfused.__file__).parent}")
    print(f"python {platform.python_version()}, {platform.platform()}")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, ROCm {torch.version.hip}")
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"triton {_version('triton') or 'is not installed'}")
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        print(f"cuda:{index} {torch.cuda.get_device_name(index)}, sm_{major}{minor}")

    print("\ncompiled library")
    record = _library.build_record()
    if record.get("built"):
        print(f"  {', '.join(record['built'])}: with {record['compiler']} for "
              f"torch {record['torch']}, CUDA {record['cuda']}")  # fmt: skip
        if "cuda_architectures" in record:
            print(f"  CUDA architectures: {' '.join(record['cuda_architectures'])}")
    for part, why in record.get("left_out", {}).items():
        print(f"  {part}: left out, {why['reason']}: {why['fix']}")
    if not record:
        print("  nothing was compiled")

    print("\nbackends")
    for line in backends.status():
        print(f"  {line}")

    print("\nbackend=None means")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        name, slower_because = backends.preferred(device)
        why = "; ".join(slower_because)
        print(f"  {name} on {device} tensors" + (f", because {why}" if why else ""))
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
