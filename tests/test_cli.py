"""`discfused doctor`, closed outputs, and wrong commands."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import discfused
from discfused import backends, cli, doctor, recipes
from discfused.backends import _library


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "discfused", *arguments],
        capture_output=True, text=True, cwd=cwd, env=os.environ | environment,
    )  # fmt: skip


def test_doctor_tells_what_is_there(tmp_path):
    result = run("doctor", cwd=tmp_path, DISCFUSED_BACKEND="")
    assert result.returncode == 0, result.stderr
    for fact in (discfused.__version__, torch.__version__, *map(str, backends.status())):
        assert fact in result.stdout
    assert f"{backends.preferred('cpu')[0]} on cpu tensors" in result.stdout


@pytest.mark.parametrize(
    ("value", "name", "because"),
    [
        ("reference", "reference", "DISCFUSED_BACKEND is 'reference'"),
        ("foo", None, "DISCFUSED_BACKEND is 'foo', expected one of 'reference', 'cpu'"),
        ("cuda", None, "DISCFUSED_BACKEND is 'cuda', but it cannot run here: "),
    ],
)
def test_doctor_knows_the_variable(value, name, because, monkeypatch, capsys):
    monkeypatch.setenv("DISCFUSED_BACKEND", value)
    default = doctor.facts()["default_backend"]["cpu"]
    assert default["name"] == name and default["because"][0].startswith(because)
    assert cli.main(["doctor"]) == 0
    line = capsys.readouterr().out.partition("backend=None means\n")[2].splitlines()[0]
    assert line.startswith(f"  {name or 'an error'} on cpu tensors, because {because}")


def test_doctor_as_json_says_the_same(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert doctor.report(found) + "\n" == text
    assert found["torch"] == torch.__version__


@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_nobody_reads_on_and_that_is_no_error(tmp_path, unbuffered):
    command = [sys.executable, *unbuffered, "-m", "discfused", "doctor"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=tmp_path) as doctor:
        doctor.stdout.close()
        assert b"BrokenPipe" not in doctor.stderr.read()


def test_a_closed_output(tmp_path):
    command = f'exec "{sys.executable}" -m discfused doctor >&-'
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr


def test_a_table_on_an_old_console(tmp_path, request):
    runs = request.config.rootpath / "docs" / "recipes" / "digits-60"
    shutil.copytree(runs, tmp_path / "runs")
    result = run("table", "runs", cwd=tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 0, result.stderr
    assert " +- " in result.stdout


def test_doctor_tells_what_was_left_out_and_why(monkeypatch, capsys):
    record = {
        "built": [],
        "left_out": {"cpu": {"reason": "no compiler was found", "fix": "install one"}},
    }
    monkeypatch.delenv("DISCFUSED_BACKEND", raising=False)
    monkeypatch.setattr(_library, "build_record", lambda: record)
    monkeypatch.setattr(_library, "_load_once", lambda: _library.LibraryUnavailable("gone", "mend"))
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "cpu: left out, no compiler was found: install one" in printed
    assert "reference on cpu tensors, because cpu: gone: mend" in printed


def test_demo_without_its_packages_says_what_to_install(monkeypatch, capsys):
    for name in ("demo", "demo_data"):  # as without imports of other tests
        monkeypatch.delitem(sys.modules, f"discfused.recipes.{name}", raising=False)
        monkeypatch.delattr(recipes, name, raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(["demo"]) == 1
    assert "needs sklearn: pip install 'discfused[demo]'" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_bad_commands_end_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: discfused" in capsys.readouterr().err
