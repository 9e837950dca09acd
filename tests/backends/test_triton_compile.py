"""Every Triton kernel compiled ahead of time, without a GPU: it compiles, spills no register, and
has enough loads in flight."""

import os
import re
from collections import Counter
from functools import cache

import pytest
import torch

from discfused._definitions import ACTIVATIONS, IMPURITIES, PROBABILITY_FLOOR
from discfused.backends import triton_runtime

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing can be compiled", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

import triton
from triton.backends.compiler import GPUTarget

from benchmarks.launches import (
    SM_90,
    Launch,
    compile_launch,
    compiled_code,
    launches,
    signature,
)
from benchmarks.sass import Code, in_flight

RELEASE = tuple(map(int, triton.__version__.split(".")[:2]))
if RELEASE < (3, 3):
    pytest.skip("Triton before 3.3 compiles by another interface", allow_module_level=True)
OLD = RELEASE < (3, 6)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": SM_90,
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64,
}  # fmt: skip
CHANGING = {  # parameters that may be others at every step
    *("N", "S", "C", "R", "blocks", "slot_blocks", "ignore_index", "given"),
    *("length", "group", "read", "runs"),
    *("gini_weight", "gini_rest", "kl_weight", "kl_rest", "grad_penalty", "grad_gini", "grad_kl"),
}
LIMIT = 255  # registers a thread can have
# N, D, C: one tile of slots of either size, several, more classes than samples, of one run of rows
# and of several, runs merged twice; soft labels
HARD = [
    *(
        (256, 2048, 60),
        (512, 2048, 200),
        (1024, 2048, 1000),
        (512, 1024, 21841),
        (2048, 512, 21841),
    ),
    (40000, 512, 10),
]
SOFT = [(256, 2048, 60), (256, 2048, 1000)]


@cache
def kernels():
    return triton_runtime.kernels()


@cache
def variants(dtype: str) -> dict[str, Launch]:
    """name -> one of the launches that are compiled to the same code: all that there are for
    contiguous features whose rows are aligned."""
    options = [
        {"activation": i, "impurity": j, "prior": i == j, "weighted": i != j}
        for i in range(len(ACTIVATIONS)) for j in range(len(IMPURITIES))
    ]  # fmt: skip
    options += [{"activation": i, "histogram": True} for i in range(len(ACTIVATIONS))]
    found = {}
    for soft, shapes in ((False, HARD), (True, SOFT)):
        for shape in shapes:
            for chosen in options:
                forward, backward = launches(*shape, DTYPES[dtype], soft=soft, **chosen)
                for launch in forward + backward:
                    fixed = [
                        f"{name}={int(value)}" for name, kind, value in signature(launch)
                        if kind == "constexpr" and name.isupper()
                    ]  # fmt: skip
                    name = " ".join([launch.kernel, *fixed])
                    previous = found.setdefault(name, launch)
                    assert launch.options == previous.options, name
    return found


@cache
def code(dtype: str, name: str, target: str) -> Code:
    return compiled_code(variants(dtype)[name], TARGETS[target])


def assembly(dtype: str, name: str, kind: str) -> str:
    """Of sm_90, of the first variant of this kernel."""
    launch = next(launch for key, launch in variants(dtype).items() if key.startswith(name))
    return compile_launch(launch).asm[kind]


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
    if target == "gfx942" and OLD:
        pytest.skip("Triton before 3.6 links code for AMD by ROCm's own linker")
    spills = []
    for name in variants(dtype):
        used = code(dtype, name, target)
        line = f"{target:7} {name:90} {used.registers:4} registers, {used.spilled} spilled"
        print(f"{line}, {used.shared} bytes shared")
        if used.spilled > (PARKED if used.registers < LIMIT else 0):
            spills.append(line)
    assert not spills, "\n".join(spills)


# Memory of 3.35 TB/s and 0.7 microseconds latency needs so many bytes in flight on each of 132
# multiprocessors. Features come from memory, the rest mostly from L2.
ENOUGH = 18_000
LOADS = {  # on their way before the first is used: of x, H or parts of sums
    "table_kernel": 4, "gradient_kernel": 4, "fold_kernel": 8, "column_terms_kernel": 4,
    "whole_terms_kernel": 2, "slot_terms_kernel": 4, "finish_kernel": 4, "soft_table_kernel": 4,
    "soft_gradient_kernel": 4,
}  # fmt: skip
FEW_BYTES = {"compare_rows_kernel", "merge_rows_kernel"}  # labels, from cache
# The sums of at most 256 slots, from L2: how many are on their way changes with Triton's release.
FROM_L2 = {"whole_terms_kernel"}


@pytest.mark.skipif(OLD, reason="how many loads are in flight changes with Triton's release")
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_loads_are_in_flight_together(dtype):
    """A loop whose loads wait for one another reaches a third of the speed of memory."""
    serial = []
    for name in variants(dtype):
        used, kernel = code(dtype, name, "sm_90"), name.split()[0]
        line = f"{name:90} {used.loads} loads, {used.bytes_in_flight} bytes in {used.blocks} blocks"
        print(line)
        if kernel in FEW_BYTES or (dtype == "fp64" and kernel.startswith("soft")):
            continue  # a product of float64 is bound by arithmetic
        enough = {"table_kernel": 2 * ENOUGH, "gradient_kernel": 2 * ENOUGH}.get(kernel, ENOUGH)
        few = used.bytes_in_flight < enough and kernel not in FROM_L2
        if used.loads < LOADS[kernel] or few:
            serial.append(line)
    assert not serial, "\n".join(serial)


SERIAL = """
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E R8, desc[UR4][R2.64+0x10] ;
        /*0030*/                   FADD R9, R6, R9 ;
        /*0040*/                   LDG.E R10, desc[UR4][R2.64+0x20] ;
        /*0050*/                   FADD R9, R10, R8 ;
        /*0060*/               @P0 BRA 0x{target} ;
        /*0070*/                   BRA 0x70 ;
"""


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("10", (2, 20)),  # the sum of the quad's third number ends the first load
        ("20", (2, 8)),  # a loop without the wide load
        ("80", (2, 20)),  # no loop
    ],
)
def test_what_counts_as_in_flight(target, found):
    assert in_flight(SERIAL.format(target=target)) == found


def test_compiled_code_reads_wide_and_computes_exactly():
    """16 bytes a thread from aligned rows of bfloat16; no TF32 in the product; and no constant of
    float64 that has been a float32 on its way."""
    ptx = assembly("bf16", "gradient_kernel", "ptx")
    assert re.search(r"ld\.global\S*\.v4\.b32", ptx)
    assert "tf32" not in assembly("fp32", "soft_table_kernel", "ptx")
    for name in variants("fp64"):
        text = assembly("fp64", name, "ttir")
        constants = re.findall(r"arith\.constant (?:dense<)?([-+.\deE]+)>? : .*f64", text)
        assert {float(c) for c in constants} <= {-1, 0, 1, 2, PROBABILITY_FLOOR}, name


@pytest.mark.parametrize(
    "kernel", ["table_kernel WEIGHTED=0", "table_kernel WEIGHTED=1", "soft_table_kernel"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_rows_have_one_order_whatever_the_alignment(dtype, kernel):
    """The compiler lays out a block by the alignment of x: other rows in a thread, or others fused
    with the sum, would show in the numbers of operations."""
    launch = next(one for key, one in variants(dtype).items() if key.startswith(kernel))
    N, D = launch.arguments["x"].shape
    unaligned = launch.arguments["x"].new_empty((N, D + 1))[:, 1:]
    moved = launch._replace(
        arguments={**launch.arguments, "x": unaligned, "row_stride": unaligned.stride(0)}
    )
    found = []
    for one in (launch, moved):
        ptx = compile_launch(one).asm["ptx"]
        found.append(Counter(re.findall(r"\s((?:add|sub|mul|fma)\S*\.f(?:32|64))\s", ptx)))
    assert signature(launch) != signature(moved)
    assert found[0] == found[1] and any(name.startswith(("add", "fma")) for name in found[0])


# Rows of x and of H aligned or not: what a thread has of a tile differs
ALIGNED = [(256, 2048, 60), (70, 64, 300), (1024, 2048, 1000)]
UNALIGNED = [(37, 19, 10), (70, 33, 300), (1500, 33, 1100)]


@pytest.mark.parametrize("shape", [*ALIGNED, *UNALIGNED], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_all_lanes_have_the_same_sum(shape, soft, dtype):
    """Compilers may fuse `mul` and `add` that do not ask for a rounding (.rn). Not where a lane
    adds another one's product to its own: each would round the other's alone."""
    forward, backward = launches(*shape, dtype, soft=soft, impurity=1)
    for launch in forward + backward:
        made, fused = {}, []  # by register: the instruction that made it
        for line in compile_launch(launch).asm["ptx"].splitlines():
            name, _, operands = line.strip().partition(" ")
            result, *given = re.findall(r"%\w+", operands) or [None]
            by = [made.get(register, "") for register in given]
            exchanged = any("shfl" in one for one in by)
            if exchanged and name in ("mov.b64", "cvt.u64.u32", "shl.b64", "or.b64"):
                name = "shfl of 64 bits"
            if exchanged and re.fullmatch(r"add\.f\d+", name):
                fused += [line for one in by if re.fullmatch(r"mul\.f\d+", one)]
            elif by and "shfl" in by[-1] and name.startswith("fma"):
                fused.append(line)
            made[result] = name
        assert not fused, f"{launch.kernel}: {fused}"


@pytest.mark.parametrize(("N", "C", "cut"), [(256, 8, False), (256, 7, True), (257, 9, True)])
def test_slots_are_cut_where_rows_are_many_or_slots_few(N, C, cut):
    forward, _ = launches(N, 64, C, torch.bfloat16)
    assert ("fold_kernel" in [launch.kernel for launch in forward]) == cut


def test_specialisations_are_bounded():
    """N, C and S are never compiled in; a training run compiles at most eight kernels, each for at
    most two alignments of D and of the row stride."""
    names = [name for name in kernels().__all__ if name.endswith("_kernel")]
    assert {name.split()[0] for name in variants("bf16")} == set(names)
    for name in names:
        fn = getattr(kernels(), name)
        for parameter in fn.params:
            if parameter.name in CHANGING:
                assert parameter.do_not_specialize, f"{name} is compiled for every {parameter.name}"
                assert not parameter.is_constexpr
    # Everything there is for one dtype and one layout: a number that must not grow unnoticed.
    assert len(variants("bf16")) == 59
