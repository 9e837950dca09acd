"""The structure of the package: imports point downwards, and the core needs only torch."""

import ast
import sys
from pathlib import Path

import pytest

import discfused

PACKAGE = Path(discfused.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# From the top to the bottom: a file imports only from rows below its own, or from its own row.
ROWS = [
    ["cli.py", "__main__.py"],
    ["recipes/", "doctor.py"],
    ["__init__.py"],
    ["lightning.py"],
    ["inspection/"],
    ["metrics.py"],
    ["running.py"],
    ["modules.py"],
    ["tap/", "functional.py", "histogram.py"],
    ["_discriminability.py"],
    ["_terms.py"],
    ["_ops.py"],
    ["reference.py", "backends/"],
    ["_batch.py"],
    ["_cross_entropy.py", "_inputs.py"],
    ["_class_sums.py"],
    [
        "_commit.py",
        "_definitions.py",
        "_extras.py",
        "_files.py",
        "_interrupt.py",
        "_modes.py",
        "_version.py",
    ],
]

# Files that need the packages of the extra `inspect`. The core does not import them.
OPTIONAL = ["lightning.py", "metrics.py", *(f"inspection/{name}.py" for name in
                            ("exciting", "figures", "measure", "page"))]  # fmt: skip


def row(path: str) -> int:
    for index, names in enumerate(ROWS):
        if any(path == name or (name.endswith("/") and path.startswith(name)) for name in names):
            return index
    raise AssertionError(f"{path} has no row")


def imported(path: str):
    """(module, whether at the top of the file) for every import."""
    tree = ast.parse((PACKAGE / path).read_text())
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, top
            yield from ((f"{node.module}.{alias.name}", top) for alias in node.names)


def file_of(module: str) -> str | None:
    base = module.removeprefix("discfused").removeprefix(".").replace(".", "/")
    for candidate in (f"{base}.py", f"{base}/__init__.py".removeprefix("/")):
        if candidate in FILES:
            return candidate
    return None


@pytest.mark.parametrize("path", FILES)
def test_imports_point_downwards(path):
    for module, _ in imported(path):
        if module.startswith("discfused."):
            other = file_of(module)
            assert other is None or row(other) >= row(path), f"{path} imports {module}"


def test_only_the_choice_of_a_backend_imports_the_reference():
    users = {path for path in FILES for module, _ in imported(path)
             if module in ("discfused.reference",)}  # fmt: skip
    assert users == {"_terms.py"}


@pytest.mark.parametrize("path", [path for path in FILES if row(path) > 1 and path not in OPTIONAL])
def test_the_core_needs_torch_alone(path):
    allowed = {"discfused", "torch", *sys.stdlib_module_names}
    if path.startswith("backends/triton_"):  # imported only before Triton runs
        allowed.add("triton")
    for module, top in imported(path):
        assert not top or module.split(".")[0] in allowed, f"{path} imports {module}"
        assert not top or file_of(module) not in OPTIONAL, f"{path} imports {module}"
