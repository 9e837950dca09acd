"""Reports: Ctrl-C, progress bar, memory, and no change of matplotlib's state."""

import signal
import sys
import warnings

import pytest

from report_cases import BATCH, Small, loader, run_of  # isort: skip
import discfused
from discfused.inspection import measure
from discfused.inspection.page import Report

# --- Ctrl-C, and waiting --------------------------------------------------------------------------


class Interrupting(Small):
    """Ctrl-C in the third forward pass."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        if self.runs == 3:
            signal.raise_signal(signal.SIGINT)
        return super().forward(x)


def interrupted(batches):
    """Ctrl-C during the wait for the next batch."""
    yield from batches
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["model", "loader"])
def test_ctrl_c_leaves_what_has_been_seen(where, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    if where == "model":  # the current batch is finished
        seen, report = 3, discfused.report(Interrupting(), loader())
    else:
        seen, report = 2, discfused.report(Small(), interrupted(loader()[:2]))
    assert signal.getsignal(signal.SIGINT) is handler
    (run,) = report.runs
    assert report.partial and run.samples == seen * BATCH == run.last.samples_per_class.sum()
    assert f"was stopped after {seen * BATCH}\nsamples" in report.save(tmp_path).read_text()
    assert f"partial: {seen * BATCH} samples" in repr(report)
    assert report.document()["runs"][0]["partial"] is True
    whole = discfused.report(Small(), loader())
    assert not whole.partial and "was stopped" not in whole.page


def test_ctrl_c_before_anything_was_seen():
    with pytest.raises(KeyboardInterrupt):
        discfused.report(Small(), interrupted([]))


@pytest.mark.parametrize("long", [0, 60])
def test_a_progress_bar_where_it_takes_long(monkeypatch, capsys, long):
    monkeypatch.setattr(measure, "LONG", long)
    discfused.report(Small(), loader(), name="mine")
    assert ("mine: " in capsys.readouterr().err) == (long == 0)


# --- the cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(package, python):
    code = f"""
import sys
sys.modules[{package!r}] = None
import discfused
from torch import nn
try:
    discfused.report(nn.Linear(2, 2), [])
except ImportError as error:
    print(error)
"""
    assert python(code) == f"discfused.report needs {package}: pip install 'discfused[inspect]'\n"


def test_the_screen_of_others_stays_as_it_is():
    """A report does not change the backend and style of a notebook."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Report([run_of(4, 8)]).pictures) == 4
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_is_bounded_with_1000_classes_4096_features_and_50000_samples(python):
    """640 MB above a model of 20 MB: a dozen tables of 1,000 x 4,096 numbers while they are made,
    pictures (at most 6 * 4,096), the page. The features of all samples alone would be 820 MB."""
    code = """
import torch
from torch import nn
import discfused

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(192, 4096), nn.Linear(4096, 1000)
    def forward(self, x):
        return self.fc(self.body(x.flatten(1)).relu())

def batches(samples):
    for first in range(0, samples, 250):
        y = torch.arange(first, first + 250) % 1000
        yield torch.randn(250, 3, 8, 8), y

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

torch.set_num_threads(2)
model = Model()
model(next(batches(250))[0])
small = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
discfused.report(small, [(torch.randn(3, 3, 8, 8), torch.arange(3))]).page  # imports, fonts
open("/proc/self/clear_refs", "w").write("5")
before = peak()
report = discfused.report(model, batches(50_000))
measured = peak() - before
report.save("out")
assert report.runs[0].samples == 50_000 and not report.partial
print(measured // 1024, (peak() - before) // 1024)
"""
    measured, saved = map(int, python(code).split())
    assert measured <= saved < 640, (measured, saved)
