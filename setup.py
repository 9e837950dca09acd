"""How discfused._C is compiled. What is compiled, and why not the rest: build_tools/build_plan.py.

All that needs no compiler is in pyproject.toml.
"""

import hashlib
import json
import os
import runpy
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Command, setup
from setuptools.command.build import build

sys.path.insert(0, str(Path(__file__).resolve().parent / "build_tools"))
import build_backend
import build_plan

LIBRARY = "discfused._C"
SOURCES = {"cpu": ["*.cpp", "cpu/*.cpp"], "cuda": ["cuda/*.cpp", "cuda/*.cu"]}  # in csrc
# Last, against CFLAGS and LDFLAGS: -O3 replaces an -Ofast. With fast-math, GCC would also link code
# that makes the whole process lose subnormal numbers.
EXACT = ["-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations"]

if int(setuptools.__version__.split(".")[0]) < 77:  # only possible with --no-build-isolation
    raise SystemExit(
        f"setuptools is {setuptools.__version__}, expected >= 77: "
        "pip install 'setuptools>=77,<82'"  # some releases of torch refuse 82
    )


def make_extension(plan: build_plan.Plan):
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    compile_openmp, link_openmp = openmp(plan)
    # -g0: Python's own flags ask for debugging symbols, which double the time and the size.
    # -Wno-error: a -Werror in CFLAGS would fail at the headers of torch.
    flags = {"cxx": [*EXACT, "-Wno-error", "-g0", "-fvisibility=hidden", *compile_openmp]}
    if plan.compiler.startswith("Clang") and float(plan.compiler.split()[1]) >= 18:
        # By default it names some functions of torch in another way than GCC does.
        flags["cxx"].append("-fclang-abi-compat=17")
    make = CppExtension
    if "cuda" in plan.parts:
        make = CUDAExtension
        flags["cxx"].append("-DDISCFUSED_CUDA")
        flags["nvcc"] = ["-O3", *plan.nvcc.architecture_flags()]
    patterns = [pattern for part in plan.parts for pattern in SOURCES[part]]
    return make(
        LIBRARY,
        [str(path) for pattern in patterns for path in sorted(Path("csrc").glob(pattern))],
        depends=[str(header) for header in sorted(Path("csrc").rglob("*.h"))],
        include_dirs=[str(build_plan.CSRC)],
        extra_compile_args=flags,
        extra_link_args=[*EXACT, *link_openmp],
    )


def openmp(plan: build_plan.Plan) -> tuple[list[str], list[str]]:
    """Flags to compile and to link. at::parallel_for is a template: serial without OpenMP here.

    The runtime is torch's own, linked by its file, because its name can have a hash. A second one
    would have threads of its own, which torch.set_num_threads does not limit.
    """
    if "threads" in plan.left_out:
        return [], []
    package = Path(plan.torch.__file__).parent
    bundled = [*package.glob("lib/libgomp*.so*"), *package.parent.glob("torch.libs/libgomp*.so*")]
    return ["-fopenmp"], [str(bundled[0])] if bundled else ["-fopenmp"]


# Packing the sources and describing the package compile nothing, so they need no torch.
if {"sdist", "egg_info", "dist_info"}.intersection(sys.argv):
    plan = build_plan.Plan("none")
else:
    plan = build_plan.decide(build_plan.requested(), build_backend.import_torch)

if plan.nvcc:  # torch.utils.cpp_extension would derive another from the path of nvcc
    os.environ["CUDA_HOME"] = str(plan.nvcc.home)
if plan.parts:
    from torch.utils.cpp_extension import BuildExtension
else:
    from setuptools.command.build_ext import build_ext as BuildExtension


class BuildKernels(BuildExtension):
    """torch's compiling command, which goes on without the parts that do not compile."""

    def finalize_options(self):
        super().finalize_options()
        # Objects are kept for the next build, and must not be linked for another torch or Python.
        abi = f"{sysconfig.get_config_var('SOABI')}-torch-{plan.torch.__version__}"
        self.build_temp = str(Path("build", f"objects-{abi}"))

    def run(self):
        os.environ.setdefault("MAX_JOBS", str(build_plan.jobs()))
        (extension,), options = self.extensions, vars(self).copy()
        while plan.parts:
            try:
                super().run()
                return
            except Exception as error:
                plan.compiling_failed(error)
            if plan.parts:
                vars(extension).update(vars(make_extension(plan)))
                vars(self).update(options)  # running changes them
        self.extensions = []


class BuildRecord(Command):
    """Writes discfused/_build.json, for `doctor` and for the check before the library is loaded."""

    user_options = []  # noqa: RUF012
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))
        self.in_source = Path("discfused", "_build.json")
        self.in_build = Path(self.build_lib) / self.in_source

    def run(self):
        record = plan.record()
        of_checkout = runpy.run_path(str(Path("discfused", "_commit.py")))["of_checkout"]
        record["commit"] = of_checkout(Path("discfused"))
        if plan.parts:
            library = Path(self.get_finalized_command("build_ext").get_ext_fullpath(LIBRARY))
            record["library"] = library.name
            record["sha256"] = hashlib.sha256(library.read_bytes()).hexdigest()
            print(f"discfused: compiled {' and '.join(plan.parts)} with {plan.compiler}, "
                  f"to run with torch {plan.torch.__version__}")  # fmt: skip
        for part, why in plan.left_out.items():
            print(f"discfused: left out {part}, because {why}")
        path = self.in_source if self.editable_mode else self.in_build
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    # setuptools requires these of a command that takes part in `build`.
    def get_source_files(self):
        return []

    def get_outputs(self):
        return [str(self.in_build)]

    def get_output_mapping(self):
        return {str(self.in_build): str(self.in_source)} if self.editable_mode else {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_record", None)]  # noqa: RUF012


commands = {"build": Build, "build_record": BuildRecord}
if plan.parts:
    setup(ext_modules=[make_extension(plan)], cmdclass=commands | {"build_ext": BuildKernels})
else:
    setup(cmdclass=commands)
