"""What the sources of the Triton kernels must not contain. The interpreter
(test_triton_interpreter.py) cannot see an offset of 32 bits, a float atomic, or a bfloat16 that is
summed in its own precision.
"""

import ast
import re
from pathlib import Path

import pytest

from discfused.backends import triton_backend

INTEGERS = {"index", "target", "numbers", "label"}  # what points to them
SOURCES = sorted(Path(triton_backend.__file__).parent.glob("triton_*.py"))
BANNED = [  # atomics, tuning, what Triton 3.2 cannot interpret; host syncs; driver queries
    *(r"tl\.atomic", r"autotune", r"tl\.range\(", r"tl\.static_range\(", "~"),
    *(r"\.item\(", r"\.tolist\(", r"\.cpu\(", r"synchronize\(", r"\bunique\(", r"nonzero\("),
    *(r"bincount\(", r"masked_select", r"get_device_propert", r"active\.", r"allow_tf32"),
]


def calls(tree: ast.AST, name: str):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield node


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_floats_are_cast_as_soon_as_loaded(source):
    text = source.read_text()
    tree = ast.parse(text)
    cast = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "to"
    }
    for call in calls(tree, "tl.load"):
        pointer = ast.unparse(call.args[0]).split()[0].strip("(")
        if pointer not in {*INTEGERS, "start"}:
            assert id(call) in cast, f"{source.name}:{call.lineno} loads {pointer} without a cast"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_offsets_are_64_bit(source):
    """Whatever is multiplied by a stride or a row length is int64."""
    tree = ast.parse(source.read_text())
    strides = {"row_stride", "target_stride", "weight_stride", "D", "width"}
    wide = {"columns", "line", "wide"}  # made of _columns, or cast where they are made
    for node in ast.walk(tree):
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
            continue
        left, right = ast.unparse(node.left), ast.unparse(node.right)
        if right in strides and not isinstance(node.left, ast.Constant):
            root = left.split("[")[0].split(" ")[0]
            ok = "tl.int64" in left or root in wide
            assert ok or source.stem == "triton_backend", f"{source.name}:{node.lineno} {left}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_sources_avoid_what_breaks_capture_determinism_or_old_triton(source):
    text = source.read_text()
    code = "\n".join(ast.unparse(node) for node in ast.parse(text).body)
    code = re.sub(r'""".*?"""', "", code, flags=re.DOTALL)
    for pattern in BANNED:
        assert not re.search(pattern, code), f"{source.name} holds {pattern}"
    if "import triton.language" in text:
        assert " in range(" not in code, f"{source.name} loops over a range: use while"
    for call in calls(ast.parse(text), "tl.dot"):
        assert "input_precision='ieee'" in ast.unparse(call)
