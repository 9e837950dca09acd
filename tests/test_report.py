"""discfused.report: what is measured, on which models, and how it ends early."""

import signal
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from report_cases import BATCH, C, D, N, Small, images, loader, run_of  # isort: skip
import discfused
from discfused.inspection import exciting, measure
from discfused.inspection.exciting import KEPT, PIXELS, MostExciting
from discfused.inspection.page import Report
from discfused.metrics import feature_discriminability


def same(got, expected):
    for field, value in expected._asdict().items():
        torch.testing.assert_close(getattr(got, field), value, rtol=1e-5, atol=1e-6, msg=field)


def test_the_numbers_are_those_of_all_data_in_one_batch():
    """Of what feeds the classifier, before dropout; in eval mode; the model is left as it was."""
    model, (x, y) = Small(), images()
    model.train()
    model.first.eval()
    (run,) = discfused.report(model, loader()).runs
    with torch.no_grad():
        same(run.last, feature_discriminability(model.features(model.first(x).relu()), y, C))
    assert [*run.layers] == ["features"] or [*run.layers] == ["input of drop"]
    assert (run.name, run.samples, run.partial) == ("Small", N, False)
    assert run.class_names == ["0", "1", "2", "3"]
    assert model.training and model.fc.training and not model.first.training
    assert not model.features._forward_hooks and not model.features._forward_pre_hooks


def test_several_layers():
    model, (x, y) = Small().eval(), images()
    report = discfused.report(model, loader(), ["first", "features"], activation="relu")
    (run,) = report.runs
    assert [*run.layers] == ["first", "features"]
    with torch.no_grad():
        first = model.first(x)
        given = first, model.features(first.relu())
        for got, features in zip(run.layers.values(), given, strict=True):
            same(got, feature_discriminability(features, y, C, activation="relu"))
    assert "layers" in [picture.kind for picture in report.pictures]
    alone = discfused.report(model, loader(), "first", capture="output")
    assert [picture.kind for picture in alone.pictures].count("layers") == 0


def test_ignored_rows_and_soft_labels():
    model, (x, y) = Small().eval(), images()
    y[::3] = -100
    batches = [*zip(x.split(BATCH), y.split(BATCH), strict=True)]
    (run,) = discfused.report(model, batches).runs
    assert run.samples == (y >= 0).sum()
    shown = {example.sample for j in range(D) for example in run.exciting.of(j)}
    assert shown and all(y[sample] >= 0 for sample in shown)
    soft = torch.eye(C)[images()[1]]
    (run,) = discfused.report(model, zip(x.split(BATCH), soft.split(BATCH), strict=True)).runs
    same(run.last, discfused.report(model, loader()).runs[0].last)


# --- the images -----------------------------------------------------------------------------------


def test_the_most_exciting_samples_are_those_of_a_sort_of_all(monkeypatch):
    x = torch.rand(300, 7)
    x[:, 3] = 0  # dead
    x[:, 4] = 0
    x[5, 4] = 1  # fired once
    y, pictures = torch.randint(0, C, (300,)), torch.rand(300, 3, 2, 2)
    found = MostExciting(7)
    first = 0
    for rows in torch.arange(300).split([0, 1, 4, 200, 95]):
        found.update(x[rows], y[rows], pictures[rows], first)
        first += len(rows)
        assert len(found.pictures) <= 7 * KEPT  # whatever has been seen
    for j in (0, 1, 2, 5, 6):
        order = x[:, j].argsort(descending=True)[:KEPT]
        assert [each.sample for each in found.of(j)] == order.tolist()
        assert [each.label for each in found.of(j)] == y[order].tolist()
        assert [each.activation for each in found.of(j)] == x[order, j].tolist()
        for each in found.of(j):
            image = pictures[each.sample]
            stretched = (image - image.min()) / (image.max() - image.min())
            expected = (255 * stretched).round().to(torch.uint8).permute(1, 2, 0)
            assert torch.equal(torch.from_numpy(each.picture), expected)
            assert each.picture.base is None  # and no batch is kept
    assert found.of(3) == [] and [each.sample for each in found.of(4)] == [5]


def test_large_gray_images_become_small_colour_pictures():
    found = MostExciting(1)
    found.update(torch.ones(1, 1), torch.zeros(1).long(), torch.rand(1, 1, 300, 150), 0)
    assert found.of(0)[0].picture.shape == (PIXELS, PIXELS // 2, 3)
    assert not exciting._pictures(torch.full((1, 3, 2, 2), 7.0)).any()


# --- models, loaders ------------------------------------------------------------------------------


def test_a_network_of_torchvision():
    pytest.importorskip("discfused.recipes._torchvision", reason="torchvision is not there")
    from torchvision import models

    x, y = torch.rand(6, 3, 32, 32), torch.arange(6) % 3
    report = discfused.report(models.resnet18(num_classes=3), [(x, y)])
    assert [*report.runs[0].layers] == ["input of fc"] and len(report.runs[0].last.mass) == 512
    assert "images" in [picture.kind for picture in report.pictures]


def test_a_classifier_of_images_and_one_of_text_from_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not there")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "id2label": {0: "cat", 1: "dog", 2: "owl"}}  # fmt: skip
    config = transformers.ViTConfig(image_size=16, patch_size=8, **small)
    y = torch.arange(6) % 3
    batch = {"pixel_values": torch.rand(6, 3, 16, 16), "labels": y}
    report = discfused.report(transformers.ViTForImageClassification(config), [batch, batch])
    assert report.class_names == ["cat", "dog", "owl"] and report.runs[0].samples == 12
    assert len(report.runs[0].last.mass) == 16 and report.runs[0].exciting.pictures

    config = transformers.BertConfig(vocab_size=20, **small)
    batch = {"input_ids": torch.randint(0, 20, (6, 5)), "label": y}
    report = discfused.report(transformers.BertForSequenceClassification(config), [batch])
    assert "images" not in [picture.kind for picture in report.pictures]
    assert report.document()["runs"][0]["images"][0]["samples"][0]["label"] in (0, 1, 2)
    assert "What excites them?" not in report.page and "owl" in report.page


class Backbone(nn.Module):
    """No linear layer, and no logits."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        return self.conv(x).relu()


class Cosine(nn.Module):
    """Logits, and no linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.prototypes = nn.Conv2d(3, 6, 3), nn.Parameter(torch.randn(C, 6))

    def forward(self, x):
        features = self.conv(x).relu().mean((2, 3))
        return torch.cdist(features, self.prototypes)


def test_models_without_a_linear_layer():
    with pytest.raises(ValueError, match=r"layers is None, .*attach\(model, layers=...\)"):
        discfused.report(Cosine(), loader())
    assert len(discfused.report(Cosine(), loader(), "conv").runs[0].last.mass) == 6
    with pytest.raises(ValueError, match="num_classes is None, and the model gives out no logits"):
        discfused.report(Backbone(), loader(), "conv")
    report = discfused.report(Backbone(), loader(), "conv", num_classes=C)
    assert report.class_names == ["0", "1", "2", "3"]


def test_names_of_the_classes():
    class Data(torch.utils.data.TensorDataset):
        classes = ("ant", "bee", "cat", "dog")

    of_data = torch.utils.data.DataLoader(Data(*images()), batch_size=BATCH)
    assert discfused.report(Small(), of_data).class_names == ["ant", "bee", "cat", "dog"]
    given = discfused.report(Small(), of_data, class_names="abcd")
    assert given.class_names == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="class_names has 3 names, expected 4"):
        discfused.report(Small(), of_data, class_names="abc")


@pytest.mark.parametrize(
    ("batches", "error", "sentence"),
    [
        ([], ValueError, "loader gave no batch, expected at least one"),
        ([images()[0]], TypeError, r"a batch of the loader is a Tensor, expected \(inputs, target"),
        ([{"x": images()[0]}], ValueError, "a batch of the loader has 'x', expected 'labels' or"),
        ([(images()[0], images()[1] + C)], IndexError, "target"),
    ],
)
def test_bad_loaders(batches, error, sentence):
    with pytest.raises(error, match=sentence):
        discfused.report(Small(), batches)


# --- one beside another ---------------------------------------------------------------------------


def test_runs_side_by_side():
    before, after = (discfused.report(Small(), loader(), name=name) for name in ("a", None))
    both = discfused.report(Small(), loader(), compare=before)
    assert [run.name for run in both.runs] == ["a", "Small"]
    three = discfused.report(Small(), loader(), compare=[both, after])
    assert [run.name for run in three.runs] == ["a", "Small", "Small (2)", "Small (3)"]
    same(three.runs[0].last, before.runs[0].last)
    other = discfused.report(Small(), loader(), class_names="abcd")
    with pytest.raises(ValueError, match="compare holds runs on other classes"):
        discfused.report(Small(), loader(), compare=other)


# --- Ctrl-C, and waiting --------------------------------------------------------------------------


class Interrupting(Small):
    """Ctrl-C while it runs for the third time."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        if self.runs == 3:
            signal.raise_signal(signal.SIGINT)
        return super().forward(x)


def interrupted(batches):
    """While the next batch is waited for."""
    yield from batches
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["model", "loader"])
def test_ctrl_c_leaves_what_has_been_seen(where, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    if where == "model":  # the batch at hand is finished
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
def test_a_missing_package_is_named(package, tmp_path):
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
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"discfused.report needs {package}: pip install 'discfused[inspect]'\n"


def test_the_screen_of_others_stays_as_it_is():
    """A notebook's backend and style."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Report([run_of(4, 8)]).pictures) == 4
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_is_bounded_with_1000_classes_4096_features_and_50000_samples(tmp_path):
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
from discfused.inspection import measure, page
page.Report([measure.measure(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
                             [(torch.randn(3, 3, 8, 8), torch.arange(3))])]).page
open("/proc/self/clear_refs", "w").write("5")
before = peak()
report = discfused.report(model, batches(50_000))
measured = peak() - before
report.save("out")
assert report.runs[0].samples == 50_000 and not report.partial
print(measured // 1024, (peak() - before) // 1024)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    measured, saved = map(int, result.stdout.split())
    assert measured <= saved < 640, result.stdout
