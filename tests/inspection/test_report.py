"""discfused.report: numbers, images, models, loaders and comparisons."""

import pytest
import torch
from torch import nn

from report_cases import BATCH, C, D, N, Small, images, loader  # isort: skip
import discfused
from discfused.inspection import exciting
from discfused.inspection.exciting import KEPT, PIXELS, MostExciting
from discfused.inspection.page import Report
from discfused.metrics import feature_discriminability


def same(got, expected):
    for field, value in expected._asdict().items():
        torch.testing.assert_close(getattr(got, field), value, rtol=1e-5, atol=1e-6, msg=field)


def test_the_numbers_are_those_of_all_data_in_one_batch():
    """Features before dropout, in eval mode. The mode of the model is restored."""
    model, (x, y) = Small(), images()
    model.train()
    model.drop.eval()
    model(x)  # so that the statistics of batch normalisation are not those of these batches
    (run,) = discfused.report(model, loader()).runs
    assert model.training and model.first[1].training and not model.drop.training
    model.eval()
    with torch.no_grad():
        same(run.last, feature_discriminability(model.features(model.first(x).relu()), y, C))
    assert [*run.layers] == ["input of drop"]
    assert (run.name, run.samples, run.partial) == ("Small", N, False)
    assert run.class_names == ["0", "1", "2", "3"]
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


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


def test_the_most_exciting_samples_are_those_of_a_sort_of_all():
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
        shown = {each.sample for j in range(7) for each in found.of(j)}
        assert found.samples_with_picture == shown  # and none beside
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
    assert found.of(3) == [] and [each.sample for each in found.of(4)] == [5]


def test_numbers_that_are_not_finite_excite_nothing():
    """The other features of the sample count."""
    x = 1 + torch.rand(20, 3)
    x[3, 0], x[4, 0], x[3, 2] = torch.nan, torch.inf, 9
    found = MostExciting(3)
    for rows in torch.arange(20).split(10):
        found.update(x[rows], rows % C, None, int(rows[0]))
    x[3:5, 0] = 0
    for j in range(3):
        order = x[:, j].argsort(descending=True)[:KEPT]
        assert [each.sample for each in found.of(j)] == order.tolist()


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
    assert "images-1" in [picture.kind for picture in report.pictures]


def test_a_classifier_of_images_and_one_of_text_from_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not there")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "id2label": {0: "cat", 1: "dog", 2: "owl"}}  # fmt: skip
    config = transformers.ViTConfig(image_size=16, patch_size=8, **small)
    y = torch.arange(6) % 3
    batch = {"pixel_values": torch.rand(6, 3, 16, 16), "labels": y}
    report = discfused.report(transformers.ViTForImageClassification(config), [batch, batch])
    assert report.class_names == ["cat", "dog", "owl"] and report.runs[0].samples == 12
    assert len(report.runs[0].last.mass) == 16 and report.runs[0].exciting.samples_with_picture

    config = transformers.BertConfig(vocab_size=20, **small)
    batch = {"input_ids": torch.randint(0, 20, (6, 5)), "label": y}
    report = discfused.report(transformers.BertForSequenceClassification(config), [batch])
    assert "images-1" not in [picture.kind for picture in report.pictures]
    assert report.document()["runs"][0]["images"][0]["samples"][0]["label"] in (0, 1, 2)
    assert "Which images excite them most?" not in report.page and "owl" in report.page


class Backbone(nn.Module):
    """A model without logits."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        return self.conv(x).relu()


class Cosine(nn.Module):
    """A model with logits but without a linear layer."""

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
    with pytest.raises(
        ValueError, match="num_classes is None, and the output of the model has no logits"
    ):
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
        ([], ValueError, "loader has no batch, expected at least one"),
        ([images()[0]], TypeError, r"a batch of the loader is a Tensor, expected \(inputs, target"),
        ([{"x": images()[0]}], ValueError, "a batch of the loader has 'x', expected 'labels' or"),
        ([(images()[0], images()[1] + C)], IndexError, "target"),
    ],
)
def test_bad_loaders(batches, error, sentence):
    with pytest.raises(error, match=sentence):
        discfused.report(Small(), batches)


@pytest.mark.parametrize(("C", "D"), [(4, 1), (1, 5), (1, 1)])
def test_a_network_with_one_feature_or_one_class(C, D, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, D, 5), nn.ReLU(), nn.Flatten(), nn.Linear(2 * D, C))
    x, y = images()
    report = discfused.report(model, [(x, y % C)], "1")
    values = report.runs[0].last
    assert values.histogram.shape == (C, D) and values.live.all()
    report.save(tmp_path)
    assert len((tmp_path / "features.csv").read_text().splitlines()) == 1 + D
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 1 + C


# --- comparisons ---------------------------------------------------------------------------------


def test_runs_side_by_side():
    before, after = (discfused.report(Small(), loader(), name=name) for name in ("a", None))
    both = discfused.report(Small(), loader(), compare=before)
    assert [run.name for run in both.runs] == ["a", "Small"]
    three = discfused.report(Small(), loader(), compare=[both, after])
    assert [run.name for run in three.runs] == ["a", "Small", "Small (2)", "Small (3)"]
    same(three.runs[0].last, before.runs[0].last)
    assert [run.name for run in Report([*three.runs, after.runs[0]]).runs][-1] == "Small (4)"
    with pytest.raises(ValueError, match="runs is empty, expected at least one"):
        Report([])
    other = discfused.report(Small(), loader(), class_names="abcd")
    with pytest.raises(ValueError, match="compare has runs on other classes"):
        discfused.report(Small(), loader(), compare=other)
