"""Every Triton kernel compiled ahead of time, without a GPU: it compiles, and spills no register.

Also what the sources must not contain: the interpreter (test_triton_interpreter.py) cannot see an
offset of 32 bits, a float atomic, or a bfloat16 that is summed in its own precision.
"""

import ast
import inspect
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

from discfused._definitions import ACTIVATIONS, IMPURITIES, PROBABILITY_FLOOR
from discfused.backends import triton_backend, triton_runtime

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing can be compiled", allow_module_level=True)
triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = ["bf16", "fp16", "fp32", "fp64"]
POINTERS = {"index": "i64", "target": "i64", "bad": "i32", "wrong": "i64"}
FLOATS = {"gini_weight", "gini_rest", "kl_weight", "kl_rest"}
LENGTHS = {"N", "S", "C", "D", "R", "blocks", "slot_blocks", "ignore_index", "given"}
LIMIT = 255  # registers a thread can have


@cache
def kernels():
    return triton_runtime.kernels()


def variants(dtype: str) -> dict[str, tuple[str, dict]]:
    """name -> kernel and its compile-time arguments: one for each distinct piece of code."""
    blocks_of = kernels().BLOCKS[torch.float64 if dtype == "fp64" else torch.float32]
    found = {"sizes": ("sizes_kernel", blocks_of["sizes"])}
    for blocks in blocks_of["rows"]:
        for present in (False, True):
            flags = {"PRESENT": present, "WEIGHTED": False}
            name = f"rows {blocks['ROWS']}{' present' * present}"
            found[name] = ("rows_kernel", {**flags, **blocks})
    for ACT, name in enumerate(ACTIVATIONS):
        for kernel in ("table", "soft_table"):
            found[f"{kernel} {name}"] = (f"{kernel}_kernel", {"ACT": ACT, **blocks_of[kernel]})
        for kernel in ("gradient", "soft_gradient"):
            for terms in (True, False):
                flags = {"TERMS": terms, "PRESENT": True, "ACT": ACT}
                suffix = "" if terms else " of the histogram"
                found[f"{kernel} {name}{suffix}"] = (
                    f"{kernel}_kernel", {**flags, **blocks_of[kernel]},
                )  # fmt: skip
    found["fold"] = ("fold_kernel", blocks_of["fold"])
    for blocks in blocks_of["columns"]:
        whole = blocks is not blocks_of["columns"][-1]
        for fold in (False, True):
            for IMPURITY, impurity in enumerate(IMPURITIES):
                flags = {"FOLD": fold, "WHOLE": whole, "IMPURITY": IMPURITY}
                name = f"column_terms {blocks['SLOTS']} {impurity}{' fold' * fold}"
                found[name] = ("column_terms_kernel", {**flags, **blocks})
        if whole:
            flags = {"PRIOR": True, "PRESENT": True}
            found[f"whole_terms {blocks['SLOTS']}"] = ("whole_terms_kernel", {**flags, **blocks})
    flags = {"PRIOR": True, "PRESENT": True}
    found["slot_terms"] = ("slot_terms_kernel", {**flags, **blocks_of["slots"]})
    found["finish"] = ("finish_kernel", {"ABSENT": True, **blocks_of["finish"]})
    return found


def compiled(dtype: str, name: str, target: str):
    kernel, arguments = variants(dtype)[name]
    fn = getattr(kernels(), kernel)
    constants = {k: v for k, v in arguments.items() if k != "num_warps"}
    constants |= {
        "column_stride": 1,
        "table_column_stride": 1,
        "target_stride": 1,
        "weight_stride": 1,
    }
    acc = "fp64" if dtype == "fp64" else "fp32"
    signature, attributes = {}, {}
    names = list(inspect.signature(fn.fn).parameters)
    for index, parameter in enumerate(names):
        kind = "i32"
        if parameter in constants:
            kind = "constexpr"
        elif parameter in FLOATS:
            kind = "fp32"
        elif parameter in ("x", "dx"):
            kind = f"*{dtype}"
        elif parameter not in LENGTHS and not parameter.endswith("stride"):
            kind = f"*{POINTERS.get(parameter, acc)}"
        signature[parameter] = kind
        # What a launch finds out by itself: allocations are aligned, and so are rows of 16 n.
        if kind.startswith("*") or parameter in ("D", "row_stride", "table_row_stride"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    constants = {(names.index(k),): v for k, v in constants.items() if k in names}
    source = ASTSource(fn, signature, constants, attributes)
    options = {"num_warps": arguments.get("num_warps", 4)}
    return triton.compile(source, target=TARGETS[target], options=options)


def resources(binary) -> dict[str, int]:
    """registers a thread, and bytes (or, on AMD, registers) that were spilled"""
    if "amdgcn" in binary.asm:
        text = binary.asm["amdgcn"]
        # Scalar registers may spill, too, but into vector registers, not to memory.
        count = {
            name: int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
            for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        }
        spills = count["vgpr_spill_count"] + count["private_segment_fixed_size"]
        return {"registers": count["vgpr_count"], "spills": spills}
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        run = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", run.stdout))
    # STACK holds spills, and nothing else here: no kernel has an array or calls a function.
    return {"registers": int(usage["REG"]), "spills": int(usage["STACK"]) + int(usage["LOCAL"])}


# Every kernel for every target, every dtype for some target; -m slow compiles all the rest.
SAMPLE = [
    ("fp16", "sm_80"), ("bf16", "sm_90"), ("fp64", "sm_90"), ("fp32", "sm_100"), ("bf16", "gfx942"),
]  # fmt: skip
REST = [(dtype, target) for dtype in DTYPES for target in TARGETS if (dtype, target) not in SAMPLE]
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in REST]

# ptxas parks a register or two on the stack where that lets one more block run beside the others
# (at 80, 96, 128 or 168 registers); which kernels it does that to changes with its release. At the
# limit of registers, or beyond four of them, it is a spill.
PARKED = 16  # bytes


@pytest.mark.parametrize(("dtype", "target"), [*SAMPLE, *SLOW])
def test_every_kernel_compiles_and_spills_no_more_than_is_parked(dtype, target):
    spills = []
    for name in variants(dtype):
        binary = compiled(dtype, name, target)
        used = resources(binary)
        line = f"{target:7} {name:36} {used['registers']:4} registers, {used['spills']} spilled"
        print(f"{line}, {binary.metadata.shared} bytes shared")
        if used["spills"] > (PARKED if used["registers"] < LIMIT else 0):
            spills.append(line)
    assert not spills, "\n".join(spills)


def test_compiled_code_reads_wide_and_computes_exactly():
    """16 bytes a thread from aligned rows of bfloat16; no TF32 in the product; and no constant of
    float64 that has been a float32 on its way."""
    ptx = compiled("bf16", "gradient abs", "sm_90").asm["ptx"]
    assert re.search(r"ld\.global\S*\.v4\.b32", ptx)
    assert "tf32" not in compiled("fp32", "soft_table abs", "sm_90").asm["ptx"]
    for name in variants("fp64"):
        text = compiled("fp64", name, "sm_90").asm["ttir"]
        constants = re.findall(r"arith\.constant (?:dense<)?([-+.\deE]+)>? : .*f64", text)
        assert {float(c) for c in constants} <= {-1, 0, 1, 2, PROBABILITY_FLOOR}, name


def test_specialisations_are_bounded():
    """N, C and S are never compiled in; a training run compiles at most six kernels, each for at
    most two alignments of D and of the row stride."""
    changing = (LENGTHS - {"D"}) | FLOATS | {"grad_penalty", "grad_gini", "grad_kl"}
    names = [name for name in kernels().__all__ if name.endswith("_kernel")]
    assert {kernel for kernel, _ in variants("bf16").values()} == set(names)
    for name in names:
        fn = getattr(kernels(), name)
        for parameter in fn.params:
            if parameter.name in changing:
                assert parameter.do_not_specialize, f"{name} is compiled for every {parameter.name}"
                assert not parameter.is_constexpr
    # Everything there is for one dtype and one layout: a number that must not grow unnoticed.
    assert len(variants("bf16")) == 34


# ---------------------------------------------------------------- what the sources must not hold

SOURCES = sorted(Path(triton_backend.__file__).parent.glob("triton_*.py"))
BANNED = [  # atomics, tuning, loops the old interpreter cannot run; host syncs; driver queries
    *(r"tl\.atomic", r"autotune", r"tl\.range\(", r"tl\.static_range\("),
    *(r"\.item\(", r"\.tolist\(", r"\.cpu\(", r"synchronize\(", r"\bunique\(", r"nonzero\("),
    *(r"bincount\(", r"masked_select", r"get_device_propert", r"active\.", r"allow_tf32"),
]
INTEGERS = {*POINTERS, "start"}


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
        if pointer not in INTEGERS:
            assert id(call) in cast, f"{source.name}:{call.lineno} loads {pointer} without a cast"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_offsets_are_64_bit(source):
    """Whatever is multiplied by a stride or a row length is int64."""
    tree = ast.parse(source.read_text())
    strides = {"row_stride", "table_row_stride", "target_stride", "weight_stride", "D", "width"}
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
