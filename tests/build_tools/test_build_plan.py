"""The parts that a build compiles, and the reasons for those that it leaves out."""

import os

import pytest

import build_plan
from build_plan import LeftOut
from installs import executable, fake_torch

pytestmark = pytest.mark.usefixtures("no_variables")


def test_a_choice_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("DISCFUSED_BUILD", "gpu")
    with pytest.raises(SystemExit, match="DISCFUSED_BUILD is 'gpu', expected one of auto, none"):
        build_plan.requested()


def test_none_looks_at_nothing(no_compiler):
    plan = build_plan.decide("none", lambda: pytest.fail("looked for torch"))
    assert plan.record()["built"] == []
    assert set(plan.left_out) == {"cpu", "cuda"}


def test_without_a_compiler(no_compiler):
    plan = build_plan.decide("auto", fake_torch)
    record = plan.record()["left_out"]
    assert "'/nonexistent/c++' does not work" in record["cpu"]["reason"]
    assert "set CXX" in record["cuda"]["fix"]
    for request in ("cpu", "cuda"):
        with pytest.raises(SystemExit, match=rf"'{request}', but .*/nonexistent/c\+\+.*set CXX"):
            build_plan.decide(request, fake_torch)


@pytest.mark.parametrize(
    ("command", "why"), [("true", "neither GCC nor Clang"), ("g++ '", "No closing quotation")]
)
def test_no_compiler_that_can_serve(monkeypatch, command, why):
    monkeypatch.setenv("CXX", command)
    plan = build_plan.decide("auto", fake_torch)
    assert why in plan.left_out["cpu"].reason


@pytest.mark.parametrize(
    ("macros", "expected"),
    [
        ("#define __GNUC__ 13\n#define __GNUC_MINOR__ 2\n#define EMPTY", "GCC 13.2"),
        ("#define __GNUC__ 4\n#define __clang__ 1\n#define __clang_major__ 18\n"
         "#define __clang_minor__ 1", "Clang 18.1"),
    ],
)  # fmt: skip
def test_compilers_are_told_apart(monkeypatch, tmp_path, macros, expected):
    monkeypatch.setenv("CXX", executable(tmp_path / "c++", f"echo '{macros}'"))
    plan = build_plan.decide("cpu", fake_torch)
    assert plan.record()["compiler"] == expected
    assert ("threads" in plan.left_out) == expected.startswith("Clang")


def test_a_part_that_does_not_compile(toolkit):
    toolkit()
    plan = build_plan.decide("auto", fake_torch)
    assert plan.record()["built"] == ["cpu", "cuda"]
    plan.compiling_failed(RuntimeError("no such header"))
    assert plan.record()["built"] == ["cpu"]
    assert f"the cuda kernels with {plan.compiler} failed (no such h" in str(plan.left_out["cuda"])
    plan = build_plan.decide("cuda", fake_torch)
    with pytest.raises(SystemExit, match="no such header"):
        plan.compiling_failed(RuntimeError("no such header"))


NVCC = """
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.88";;
--dryrun) echo "#$ TOP={home}/bin/.." >&2;;
--list-gpu-code) printf "sm_75\\nsm_80\\nsm_90\\nsm_90a\\n";;
esac
"""


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    """A function that adds a fake nvcc, outside of its toolkit, to PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def make(version="13.0"):
        home = tmp_path / "toolkit"
        (home / "bin").mkdir(parents=True)
        executable(tmp_path / "bin/nvcc", NVCC.format(version=version, home=home))
        return home

    return make


def nvcc_for(*gpus) -> build_plan.Nvcc:
    return build_plan.decide("cuda", lambda: fake_torch(gpus=gpus)).nvcc


def test_cuda_needs_no_gpu(toolkit):
    home = toolkit()
    nvcc = nvcc_for()
    assert nvcc.home == home.resolve()
    assert nvcc.architectures() == ["8.0", "9.0+PTX"]
    assert nvcc.architecture_flags() == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_every_gpu_in_sight_is_compiled_for(toolkit):
    toolkit()
    assert nvcc_for((9, 0), (7, 5), (9, 0)).architectures() == ["7.5", "9.0"]
    assert nvcc_for((9, 0), (12, 0)).architectures() == ["9.0"]  # as far as nvcc knows them
    with pytest.raises(SystemExit, match=r"13\.0\) knows none of .* 12\.0: set CUDA_HOME"):
        nvcc_for((12, 0))


def test_a_gpu_that_does_not_answer():
    def busy(index):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    torch = fake_torch(gpus=[(9, 0)])
    torch.cuda.get_device_capability = busy
    assert build_plan.visible_gpus(torch) == []


def test_the_architectures_that_the_user_chose(toolkit, monkeypatch):
    toolkit()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;9.0 10.0+PTX")
    nvcc = nvcc_for((8, 0))
    assert nvcc.architectures() == ["7.5", "9.0", "10.0+PTX"]
    assert nvcc.architecture_flags() == []


def test_cuda_reasons_name_both_versions_and_the_fix(toolkit, monkeypatch, tmp_path):
    def reason(cuda="13.0"):
        with pytest.raises(LeftOut) as caught:
            build_plan.find_cuda("cuda", "2.9.0+x", cuda)
        return str(caught.value)

    assert "torch 2.9.0+x is not a CUDA build: install a CUDA build" in reason(cuda=None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    assert "gone/bin/nvcc: install the CUDA 13 toolkit" in reason()
    monkeypatch.delenv("CUDA_HOME")
    toolkit("12.4")
    assert "CUDA 12.4, but torch 2.9.0+x is built for CUDA 13.0: set CUDA_HOME" in reason()


def test_jobs_are_bounded_by_memory(monkeypatch):
    assert 1 <= build_plan.jobs() <= os.cpu_count()
    monkeypatch.setattr(build_plan, "BYTES_PER_JOB", 2**60)
    assert build_plan.jobs() == 1
