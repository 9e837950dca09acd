"""A tap without `layers` finds the input of the classifier, before dropout, or raises an error."""

import copy
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from discfused import FeatureTap, FusedDiscLoss, fused_disc_loss
from models import CLASSES as C

ROOT = Path(__file__).resolve().parents[2]
N, D = 4, 6


class Model(nn.Module):
    """A trunk, and a head that is a function."""

    def __init__(self, head, **parts):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, D), nn.ReLU())
        self.head = head
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self, self.trunk(x))


def linear(features=D, classes=C):
    return nn.Linear(features, classes)


class Bottleneck(nn.Linear):
    pass


class Lora(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.a, self.b = linear(), nn.Linear(D, 2, bias=False), nn.Linear(2, C)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.base(x) + self.b(self.a(self.dropout(x.to(torch.float32)))) * 0.5


def found(name, head, **parts):
    return pytest.param(lambda: Model(head, **parts), id=name)


FOUND = [
    found("linear", lambda m, x: m.fc(x), fc=linear()),
    found("subclass", lambda m, x: m.fc(x), fc=Bottleneck(D, C)),
    found("dropout", lambda m, x: m.fc(m.drop(x)), fc=linear(), drop=nn.Dropout(0.9)),
    found("in place", lambda m, x: m.fc(m.drop(x)), fc=linear(), drop=nn.Dropout(0.9, True)),
    found("sequential", lambda m, x: m.fc(x), fc=nn.Sequential(nn.Dropout(0.9, True), linear())),
    found("function", lambda m, x: m.fc(F.dropout(x, 0.9, m.training)), fc=linear()),
    found("twice", lambda m, x: m.fc(F.dropout(F.dropout(x, 0.5)[:], 0.5)), fc=linear()),
    found("registered first", lambda m, x: m.a(x), a=linear(), z=linear()),
    found("scaled", lambda m, x: (m.fc(x) / 2).float()[:, :C], fc=linear()),
    found("lora", lambda m, x: m.fc(x), fc=Lora()),
    found("lora after dropout", lambda m, x: m.fc(m.drop(x)), fc=Lora(), drop=nn.Dropout(0.5)),
    found("mean of two heads", lambda m, x: (m.a(x) + m.b(x)) / 2, a=linear(), b=linear()),
    found("matrix", lambda m, x: m.act(x) @ m.w, act=nn.ReLU(), w=nn.Parameter(torch.rand(D, C))),
    found("mm", lambda m, x: m.act(x).mm(m.w), act=nn.ReLU(), w=nn.Parameter(torch.rand(D, C))),
    found("keyword", lambda m, x: m.fc(input=m.act(input=x)), fc=linear(), act=nn.ReLU()),
]


@pytest.mark.parametrize("make", FOUND)
@pytest.mark.parametrize("mode", ["train", "eval", "no grad"])
def test_found(make, mode):
    torch.manual_seed(0)
    model, x = make().train(mode == "train"), torch.randn(N, 8)
    y = torch.arange(N) % C
    criterion = FusedDiscLoss.attach(model)
    with torch.set_grad_enabled(mode != "no grad"):
        for _ in range(3):
            logits, features = model(x), model.trunk(x)
            torch.testing.assert_close(criterion.tap.take(logits), features)
            assert criterion(logits, y) == fused_disc_loss(logits, y, features)
    assert repr(criterion.tap).startswith(("FeatureTap(input of '", "FeatureTap(output of '"))
    assert f"[{N}, {D}]" in repr(criterion.tap)


def refused(name, words, head, **parts):
    return pytest.param(lambda: Model(head, **parts), words, id=name)


def cosine(model, x):
    return 10 * F.linear(F.normalize(x), F.normalize(model.w))


REFUSED = [
    refused("no linear layer", "amax", lambda m, x: x.amax(1, keepdim=True).expand(N, C)),
    refused("cosine", "neither the input nor the output", cosine, w=nn.Parameter(torch.rand(C, D))),
    refused("distilled", "2 classifiers", lambda m, x: m.a(x[:, :3]) + m.b(x[:, 3:]),
            a=linear(3), b=linear(3)),
    refused("tokens dropped out", "only a part of the output of dropout",
            lambda m, x: m.fc(F.dropout(x.view(N, 2, 3))[:, 0]), fc=linear(3)),
    refused("convolution with neighbours", "conv1d, not a linear",
            lambda m, x: m.c(x.unsqueeze(1)).mean(2), c=nn.Conv1d(1, C, 3)),
    refused("functions alone", "neither the input nor", lambda m, x: m.fc(F.dropout(x * 2)),
            fc=linear()),
    refused("distances", "cdist, not from a linear layer", lambda m, x: -torch.cdist(x, m.w),
            w=nn.Parameter(torch.rand(C, D))),
    refused("a layer that runs twice", "runs once", lambda m, x: m.fc(F.dropout(m.b(m.b(x)))),
            fc=linear(), b=nn.Linear(D, D)),
    refused("gated", "sigmoid", lambda m, x: m.fc(x) * m.gate(x).sigmoid(), fc=linear(),
            gate=linear()),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_refused(make, words):
    model, x, y = make(), torch.randn(N, 8), torch.arange(N) % C
    criterion = FusedDiscLoss.attach(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{words}.* attach\(model, layers=\.\.\.\)"):
            criterion(model(x), y)
    by_name = FusedDiscLoss.attach(model, "trunk")
    logits = model(x)
    assert by_name(logits, y) == fused_disc_loss(logits, y, model.trunk(x))


@pytest.mark.parametrize("pooled", ["after", "before"])
def test_a_convolution_of_1_x_1(pooled):
    trunk, conv = nn.Conv2d(3, D, 3), nn.Conv2d(D, C, 1)
    pool = nn.AdaptiveAvgPool2d(1)
    parts = [pool, conv] if pooled == "before" else [conv, nn.ReLU(), pool]
    model = nn.Sequential(trunk, nn.Dropout(0.5), *parts, nn.Flatten())
    criterion, y = FusedDiscLoss.attach(model), torch.arange(N) % C
    for _ in range(2):
        x = torch.randn(N, 3, 8, 8)
        logits, maps = model(x), trunk(x)
        if pooled == "before":
            assert repr(criterion.tap.take(logits).shape) == f"torch.Size([{N}, 1, 1, {D}])"
        else:
            assert criterion(logits, y) == fused_disc_loss(logits, y, maps)


def test_heads_of_several_outputs():
    """The logits of the first loss select the head."""

    class Heads(Model):
        def forward(self, x):
            x = self.trunk(x)
            return self.a(x), self.b(x * 2), self.projection(x)

    for index in range(2):
        model = Heads(None, a=linear(), b=linear(), projection=nn.Linear(D, 3))
        criterion = FusedDiscLoss.attach(model)
        criterion(model(torch.randn(N, 8))[index], torch.arange(N) % C)
        assert f"'{'ab'[index]}'" in repr(criterion.tap)


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(D), nn.ReLU(), nn.LazyLinear(C))
    criterion, x, y = FusedDiscLoss.attach(model), torch.randn(N, 8), torch.arange(N) % C
    assert criterion(model(x), y) == fused_disc_loss(model(x), y, model[:2](x))


@pytest.mark.parametrize("rows", ["samples", "tokens"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_head_that_scores_every_token(rows, grad):
    trunk, head = nn.Linear(8, D), linear()
    model = nn.Sequential(trunk, head)
    criterion, x = FusedDiscLoss.attach(model), torch.randn(N, 3, 8)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            given, features = model(x), trunk(x)
            if rows == "tokens":
                out, features = given.flatten(0, 1), features.flatten(0, 1)
            else:
                out = given[:, -1]
            y = torch.arange(len(out)) % C
            expected = fused_disc_loss(out, y, features, feature_dim=-1)
            assert criterion(out, y) == expected
    assert FusedDiscLoss.attach(model, feature_dim=1).feature_dim == 1


def test_deep_copies_find_it_again():
    model = FOUND[0].values[0]()
    FusedDiscLoss.attach(model)
    twin = copy.deepcopy(model)
    criterion, x = FusedDiscLoss.attach(twin), torch.randn(N, 8)
    assert criterion(twin(x), torch.arange(N) % C).isfinite()


# ---------------------------------------------------------------- models of other libraries

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 64, "image_size": 32, "patch_size": 8, "num_labels": C}  # fmt: skip


@pytest.fixture
def vit():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", ["attached", "attached and run", "wrapped"])
@pytest.mark.parametrize("saved", [None, ["classifier"]], ids=["lora", "modules_to_save"])
def test_peft(vit, first, saved):
    peft = pytest.importorskip("peft")
    images, y = torch.randn(N, 3, 32, 32), torch.arange(N) % C
    if first != "wrapped":
        criterion = FusedDiscLoss.attach(vit)
    if first == "attached and run":
        criterion(vit(images), y)
    targets = ["q_proj", "query"] if saved else ["classifier"]
    config = peft.LoraConfig(target_modules=targets, modules_to_save=saved, r=2, lora_dropout=0.5)
    model = peft.get_peft_model(vit, config).train()
    if first == "wrapped":
        criterion = FusedDiscLoss.attach(model)
    if saved and first != "wrapped":  # a copy of the classifier runs, which has no hooks
        with pytest.raises((RuntimeError, ValueError), match=r"layer|'classifier' ran as a module"):
            criterion(model(pixel_values=images), y)
        return
    for _ in range(2):
        outputs = model(pixel_values=images)
        features = vit.vit(images).last_hidden_state[:, 0]
        torch.testing.assert_close(criterion.tap.take(outputs), features)
        assert criterion(outputs, y).isfinite()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("soft", [False, True])
def test_the_trainer_of_transformers(vit, soft, tmp_path):
    """Accumulated over two halves of a batch, the gradient is that of the mean of their losses."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % C
    if soft:
        labels = nn.functional.one_hot(labels, C).float()
    data = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    criterion = FusedDiscLoss.attach(vit, gini_weight=3.0)
    expected = copy.deepcopy(vit).train()
    of_copy = FusedDiscLoss.attach(expected, gini_weight=3.0)
    for half in (slice(0, 4), slice(4, 8)):
        loss = of_copy(expected(images[half]), labels[half]) / 2
        loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in expected.parameters() if p.grad is not None])
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1,
        logging_steps=1, max_grad_norm=1e9, report_to=[], use_cpu=True, save_strategy="no",
        remove_unused_columns=False, data_seed=0, dataloader_num_workers=0,
    )  # fmt: skip

    class InOrder(Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(data)

    trainer = InOrder(vit, arguments, train_dataset=data,
                      compute_loss_func=criterion.compute_loss_func)  # fmt: skip
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["torchvision", "timm", "transformers"])
def test_the_table_of_models_in_the_docs(family, monkeypatch):
    pytest.importorskip(family)
    monkeypatch.syspath_prepend(ROOT / "tools")
    import tapped_layers

    try:
        every = {"torchvision": 4, "timm": 2}.get(family, 1)  # they come in sizes
        rows = {row.name: row.tapped for row in tapped_layers.rows(family, every)}
    finally:
        sys.modules.pop("tapped_layers")
    version = importlib.metadata.version(family)
    table = (ROOT / "docs" / "tapped-layers.md").read_text()
    if f"**{family} {version}**" in table:  # other releases name layers in another way
        written = dict(re.findall(r"^\| (\w+) \| (.*) \|$", table, re.M))
        assert rows.items() <= written.items()


def test_features_of_torchvisions_dropout():
    """Dropout with p close to 1: features must be captured before it."""
    models = pytest.importorskip("torchvision.models")
    model = models.mobilenet_v2(num_classes=C, dropout=0.999)
    x = torch.randn(N, 3, 32, 32)
    with FeatureTap(model) as tap:
        logits = model(x)
        assert (tap.take(logits) > 0).float().mean() > 0.1
