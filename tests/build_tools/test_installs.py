"""Every documented way to install discfused: the kernels are compiled for the torch that is there.

Nothing but discfused is installed. A new environment sees the packages of this one by links.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import discfused
from installs import copy_of_the_sources, training_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_variables")]

PIP = "python -m pip install --no-deps"
WAYS = {
    "pip": f"{PIP} .",
    "pip without isolation": f"{PIP} --no-build-isolation .",
    "editable": f"{PIP} --no-build-isolation -e .",
    "sdist and wheel": "python -c 'import build_backend; build_backend.build_sdist(\".\")' && "
    f"python -m pip wheel --no-deps --no-build-isolation discfused-*.tar.gz && {PIP} *.whl",
    "uv": "uv pip install --no-deps --no-build-isolation .",
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """One copy for all ways, so that later builds find the objects of the first."""
    return copy_of_the_sources(tmp_path_factory.mktemp("installs"))


@pytest.fixture
def environment(tmp_path):
    """A virtual environment with all packages of this one but discfused."""
    venv.create(tmp_path / "venv", symlinks=True)
    links = tmp_path / "links"
    links.mkdir()
    for folder in (Path(entry) for entry in sys.path if "-packages" in entry):
        for path in folder.iterdir():
            if "discfused" not in path.name and not (links / path.name).exists():
                (links / path.name).symlink_to(path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "zz.pth").write_text(f"{links}\n")
    return tmp_path / "venv", site


@pytest.mark.parametrize("way", WAYS)
def test_install(way, sources, environment, tmp_path):
    if way == "uv" and shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    folder, site = environment
    paths = [f"{folder}/bin", str(Path(sys.executable).parent), os.environ["PATH"]]
    run = subprocess.run(
        ["sh", "-ec", WAYS[way]],
        cwd=sources,
        env={
            **os.environ,
            "PATH": os.pathsep.join(paths),
            "PYTHONPATH": str(sources / "build_tools") if way == "sdist and wheel" else "",
            "VIRTUAL_ENV": str(folder),
            "UV_CACHE_DIR": str(tmp_path / "uv"),
            "DISCFUSED_BUILD": "cpu",
        },
        capture_output=True,
        text=True,
    )
    if way == "pip" and "No matching distribution found for setuptools" in run.stderr:
        pytest.skip("no package index to take setuptools from")
    assert run.returncode == 0, run.stdout + run.stderr

    imported, why, warned = training_step(tmp_path, f"{folder}/bin/python")
    assert imported.is_relative_to(sources if way == "editable" else site)
    assert (why, warned) == (None, [])
    # no folder of tests, and no second torch
    others = {path.name for path in site.iterdir() if "discfused" not in path.name}
    assert others <= {"zz.pth", "__pycache__"}
    command = subprocess.run(
        [folder / "bin/discfused", "--version"], capture_output=True, text=True, check=True
    )
    assert command.stdout.strip() == discfused.__version__
