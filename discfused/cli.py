"""The command line, also `python -m discfused`: doctor, demo and the commands of the recipes."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import discfused
from discfused import doctor
from discfused._definitions import IMPURITIES
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

    text = "show what is installed, which backend runs, and why a faster one does not"
    add("doctor", run_doctor, text).add_argument("--json", action="store_true", help="as JSON")
    demo = add("demo", run_demo, "train on handwritten digits, with and without the two terms")
    for name, number, what in (
        ("seeds", 8, "runs of each loss"),
        ("images", 6, "training images of each digit, at most 100"),
        ("epochs", 200, "epochs of each run"),
    ):
        demo.add_argument(f"--{name}", type=int, default=number, metavar="N",
                          help=f"{what} (default: %(default)s)")  # fmt: skip
    for term, weight in (("gini", GINI_WEIGHT), ("kl", KL_WEIGHT)):
        demo.add_argument(f"--{term}-weight", type=float, default=weight, metavar="X",
                          help="weight of the term (default: %(default)s)")  # fmt: skip
    demo.add_argument("--impurity", choices=IMPURITIES, default=IMPURITIES[0],
                      help="impurity of the Gini term (default: %(default)s)")  # fmt: skip
    demo.add_argument("--backend", metavar="NAME", help="see doctor (default: fastest for CPU)")
    demo.add_argument("--out", type=Path, default=Path("discfused-demo"), metavar="DIR",
                      help="folder for picture and report (default: %(default)s)")  # fmt: skip
    demo.add_argument("--json", type=Path, metavar="FILE", help="file for the results of all runs")
    commands_of_recipes.add_to(add)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        if sys.stdout is not None:  # closed, as by >&-
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in `discfused doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor fail at exit
        return 1


def run_demo(options: argparse.Namespace) -> int:
    try:
        from discfused.recipes import demo  # needs the packages of the extra `demo`
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


def run_doctor(options: argparse.Namespace) -> int:
    found = doctor.facts()
    print(json.dumps(found, indent=2) if options.json else doctor.report(found))
    return 0
