"""What a build does where something is missing, and a broken install when it is imported."""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import build_backend
import build_plan
import discfused
from build_backend import Torch
from build_plan import LeftOut

ROOT = Path(__file__).resolve().parents[1]
ABI = sysconfig.get_config_var("SOABI")
LIBRARY = f"_C.{ABI}.so"


def fake_torch(version="2.9.0+cu130", cuda="13.0"):
    return SimpleNamespace(__version__=version, version=SimpleNamespace(cuda=cuda, hip=None))


def executable(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("DISCFUSED_BUILD", "CXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "UV"):
        monkeypatch.delenv(name, raising=False)


# --- which torch the build asks for ---------------------------------------------------------------


@pytest.fixture
def targets(monkeypatch):
    """The target environment as the frontend's interpreter and as uv see it."""
    seen = SimpleNamespace(interpreter=None, uv=None)

    def ask_uv():
        if isinstance(seen.uv, LeftOut):
            raise seen.uv
        return seen.uv

    monkeypatch.setattr(build_backend, "_ask_interpreter", lambda: seen.interpreter)
    monkeypatch.setattr(build_backend, "_ask_uv", ask_uv)
    monkeypatch.setattr(build_plan, "find_compiler", lambda: "GCC 12.2")
    return seen


@pytest.mark.parametrize("version", ["2.6.0", "2.13.0+cpu", "2.10.0a0+git1", "3.0"])
def test_a_target_with_torch_is_asked_for_no_other(targets, version):
    targets.interpreter = Torch(version, [])
    assert build_backend.get_requires_for_build_wheel() == []


@pytest.mark.parametrize("found", [None, Torch("2.5.1", [])])
def test_a_target_without_a_usable_torch_gets_the_one_that_the_install_brings(targets, found):
    targets.interpreter = targets.uv = found
    required = build_backend.get_requires_for_build_editable()
    assert required == [
        line for line in importlib.metadata.requires("discfused") if "extra" not in line
    ]


def test_a_build_environment_of_its_own_looks_at_the_target(targets, monkeypatch, tmp_path):
    targets.uv = Torch("2.9.0", [])
    monkeypatch.setattr(build_backend.setuptools, "__file__", f"{sys.prefix}/setuptools.py")
    assert build_backend.target_torch() == targets.uv
    # as pip does: the requirements lie over the target, which is then known to have no torch
    monkeypatch.setattr(build_backend.setuptools, "__file__", str(tmp_path / "setuptools.py"))
    assert build_backend.target_torch() is None


def test_an_unknown_target_is_not_compiled_for(targets, monkeypatch):
    targets.uv = LeftOut("the target is unknown", "name it")
    monkeypatch.setattr(build_backend.setuptools, "__file__", f"{sys.prefix}/setuptools.py")
    assert build_backend.get_requires_for_build_wheel() == []
    with pytest.raises(LeftOut, match="unknown"):
        build_backend.target_torch()


def test_torch_is_not_fetched_for_nothing(targets, monkeypatch):
    monkeypatch.setenv("DISCFUSED_BUILD", "none")
    assert build_backend.get_requires_for_build_wheel() == []


def test_torch_is_not_fetched_where_nothing_compiles(monkeypatch, no_compiler):
    monkeypatch.setattr(build_backend, "_ask_interpreter", lambda: None)
    assert build_backend.get_requires_for_build_wheel() == []


def test_the_interpreter_tells_through_pips_isolation(monkeypatch, tmp_path):
    hide = "import sys; sys.path[:] = [entry for entry in sys.path if 'site-packages' not in entry]"
    (tmp_path / "sitecustomize.py").write_text(hide)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    found = build_backend._ask_interpreter()
    assert found.version == importlib.metadata.version("torch")
    assert str(Path(torch.__file__).parents[1]) in found.path


UV = """
case "$*" in
*show*) echo "$VIRTUAL_ENV $*" > {log}; echo Version: 2.9.1; echo Location: /target;;
*) UV=$0 VIRTUAL_ENV=/made/for/the/build {python} -c \
    "import build_backend; print(build_backend._ask_uv())"; exit $?;;
esac
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("arguments", "options"),
    [("install .", ""), ("install -p 3.12 .", " --python=3.12"), ("sync --system x", " --system")],
)
def test_uv_is_asked_in_the_way_it_was_started(tmp_path, arguments, options):
    log = tmp_path / "log"
    uv = executable(tmp_path / "uv", UV.format(log=log, python=sys.executable))
    environment = {**os.environ, "VIRTUAL_ENV": "/target", "PYTHONPATH": str(ROOT / "csrc")}
    run = subprocess.run(
        [uv, "pip", *arguments.split()], capture_output=True, text=True, env=environment
    )
    assert run.stdout.strip() == "Torch(version='2.9.1', path=['/target'])", run.stderr
    assert log.read_text().strip() == f"/target pip show torch{options}"
    run = subprocess.run([uv, "sync"], capture_output=True, text=True, env=environment)
    assert "cannot see which one discfused will run with" in run.stderr


# --- what is compiled, and the sentence for what is not -------------------------------------------


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


def test_a_part_that_does_not_compile(monkeypatch):
    monkeypatch.setattr(build_plan, "find_compiler", lambda: "GCC 12.2")
    monkeypatch.setattr(build_plan, "find_cuda", lambda *_: None)
    plan = build_plan.decide("auto", fake_torch)
    plan.compiling_failed(RuntimeError("no such header"))
    assert plan.parts == ["cpu"]
    assert "the cuda kernels with GCC 12.2 failed (no such header)" in str(plan.left_out["cuda"])
    plan = build_plan.decide("cuda", fake_torch)
    with pytest.raises(SystemExit, match="no such header"):
        plan.compiling_failed(RuntimeError("no such header"))


NVCC = """
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.88";;
--dryrun) echo "#$ TOP={home}/bin/.." >&2;;
--list-gpu-code) printf "sm_75\\nsm_80\\nsm_90\\nsm_90a\\nsm_120\\n";;
esac
"""


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    """A function that puts on PATH an nvcc of a version, which lives outside of its toolkit."""
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/kernels.cu").touch()
    monkeypatch.setattr(build_plan, "CSRC", tmp_path / "csrc")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def make(version="13.0", headers=True):
        home = tmp_path / "toolkit"
        executable(tmp_path / "bin/nvcc", NVCC.format(version=version, home=home))
        (home / "bin").mkdir(parents=True)
        if headers:
            (home / "include").mkdir()
            (home / "include/cuda_runtime.h").touch()
        return home

    return make


def test_cuda_follows_torch_and_nvcc_not_a_visible_gpu(toolkit):
    home = toolkit()
    nvcc = build_plan.find_cuda("auto", "2.9.0+cu130", "13.0")
    assert nvcc.home == home.resolve()
    assert nvcc.architectures() == ["8.0", "9.0", "12.0+PTX"]
    assert nvcc.architecture_flags()[-2:] == [
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_the_architectures_that_the_user_chose(toolkit, monkeypatch):
    toolkit()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;9.0 10.0+PTX")
    nvcc = build_plan.find_cuda("auto", "2.9.0+cu130", "13.0")
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
    toolkit("12.4", headers=False)
    assert "CUDA 12.4, but torch 2.9.0+x is built for CUDA 13.0: set CUDA_HOME" in reason()
    assert "cuda_runtime.h is missing" in reason("12.8")
    (tmp_path / "csrc/cuda/kernels.cu").unlink()
    assert "no CUDA kernels: build with DISCFUSED_BUILD=cpu" in reason()


def test_jobs_are_bounded_by_memory(monkeypatch):
    assert 1 <= build_plan.jobs() <= os.cpu_count()
    monkeypatch.setattr(build_plan, "BYTES_PER_JOB", 2**60)
    assert build_plan.jobs() == 1


# --- what is imported: never a failure, one warning, a sentence that says what to run -------------

RECORD = {
    "built": ["cpu"],
    "left_out": {},
    "torch": str(torch.__version__),
    "python_abi": ABI,
    "library": LIBRARY,
}
TRAINING_STEP = """
import json, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import discfused
    for _ in range(2):
        x = torch.randn(8, 4, requires_grad=True)
        discfused.fused_disc_loss(x, torch.arange(8) % 4, x).backward()
    assert x.grad.isfinite().all()
from discfused.backends import _library
try:
    _library.load()
    why = None
except _library.LibraryUnavailable as error:
    why = str(error)
warned = [str(w.message) for w in caught if "discfused" in str(w.message)]
print(json.dumps([discfused.__file__, why, warned]))
"""


def unresolved_symbol(path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    source = "void gone(void); void *PyInit__C(void) { gone(); return 0; }"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)


BROKEN = {
    "sources": (None, None, "imported from the sources in .* run `pip install .`"),
    "pure": (
        {"built": [], "left_out": {"cpu": {"reason": "no compiler", "fix": "get one"}}},
        None,
        "not compiled, because no compiler: get one",
    ),
    "other torch": (
        {"torch": "2.6.0+cu118"},
        b"",
        "torch 2.6.0.cu118, but this is torch .*: run `pip install --force",
    ),
    "other python": ({"python_abi": "cpython-39"}, b"", "for python_abi cpython-39, but this is"),
    "missing": ({}, None, f"{LIBRARY} is missing: run `pip install"),
    "truncated": ({"sha256": "of the whole"}, b"\x7fELF", "is not the file that was built: run"),
    "foreign": ({}, b"MZ, from Windows", "loading the compiled kernels failed .ImportError.*: run"),
    "unresolved symbol": ({}, unresolved_symbol, "undefined symbol: gone"),
    "damaged record": ({"torch": None, "built": None}, b"", "failed .TypeError.*: run"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_install_still_trains(case, tmp_path):
    changes, content, expected = BROKEN[case]
    package = tmp_path / "discfused"
    installed = Path(discfused.__file__).parent
    shutil.copytree(installed, package, ignore=shutil.ignore_patterns("_C*", "_build.json"))
    library = package / LIBRARY
    if callable(content):
        content(library)
    elif content is not None:
        library.write_bytes(content)
    if changes is not None:
        record = RECORD | changes
        if library.exists():
            record = {"sha256": hashlib.sha256(library.read_bytes()).hexdigest()} | record
        (package / "_build.json").write_text(json.dumps(record))

    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DISCFUSED_BACKEND": ""}
    command = [sys.executable, "-c", TRAINING_STEP]
    output = subprocess.check_output(command, text=True, cwd=tmp_path, env=environment)
    imported, why, warned = json.loads(output.splitlines()[-1])
    assert Path(imported).is_relative_to(tmp_path)
    assert len(warned) == 1
    assert why in warned[0]
    assert re.search(expected, why), why


# --- what is packed -------------------------------------------------------------------------------


def build(hook: str, folder: Path, choice: str) -> Path:
    """Runs a hook of the backend as pip does without isolation, on a copy of the sources."""
    if int(build_backend.setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("needs setuptools >= 77")
    sources = folder / "sources"
    generated = shutil.ignore_patterns(".*", "build", "*.egg-info", "_C*", "_build.json")
    shutil.copytree(ROOT, sources, ignore=generated)
    script = f"import build_backend; build_backend.{hook}({str(folder)!r})"
    environment = {
        **os.environ, "PYTHONPATH": str(sources / "csrc"), "DISCFUSED_BUILD": choice
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=sources, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (archive,) = (path for path in folder.iterdir() if path.is_file())
    return archive


def test_the_version_is_one_number():
    assert importlib.metadata.version("discfused") == discfused.__version__


def test_nothing_can_replace_the_torch_that_is_installed():
    required = importlib.metadata.requires("discfused")
    assert [line for line in required if "extra ==" not in line] == ["torch>=2.6"]
    for line in required:
        assert re.match(r"(torchvision|torchaudio|triton)", line) is None, line


def test_the_pure_wheel(tmp_path):
    wheel = build("build_wheel", tmp_path, "none")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = json.loads(archive.read("discfused/_build.json"))
    assert "discfused/backends/_library.py" in names
    assert {f"discfused/recipes/{name}" for name in ("digits.yaml", "caltech101_split.json")} <= {
        *names
    }
    assert not [name for name in names if name.startswith(("csrc", "tests", "discfused/_C"))]
    assert record["built"] == []
    assert "DISCFUSED_BUILD=none" in record["left_out"]["cpu"]["reason"]


def test_the_sdist_holds_what_the_build_and_the_tests_need(tmp_path):
    sdist = build("build_sdist", tmp_path, "cuda")  # compiles nothing, so can always be made
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in ("csrc", "discfused", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                assert str(path.relative_to(ROOT)) in packed
    assert {"setup.py", "pyproject.toml", "conftest.py", "LICENSE", "README.md"} <= packed


@pytest.mark.slow
def test_the_compiled_wheel(tmp_path):
    wheel = build("build_wheel", tmp_path, "cpu")
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    record = json.loads((tmp_path / "installed/discfused/_build.json").read_text())
    assert record["built"] == ["cpu"]
    assert record["torch"] == torch.__version__
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "DISCFUSED_BACKEND": ""}
    command = [sys.executable, "-c", TRAINING_STEP]
    output = subprocess.check_output(command, text=True, cwd=tmp_path, env=environment)
    assert json.loads(output.splitlines()[-1])[1:] == [None, []]
