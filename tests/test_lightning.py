"""LogDiscriminability, the Lightning callback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("lightning", reason="discfused.lightning needs Lightning")
pytest.importorskip("tensorboard", reason="the logs are TensorBoard's")
from report_cases import BATCH, C, Small, images  # isort: skip
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from discfused.lightning import LogDiscriminability
from discfused.metrics import feature_discriminability

EPOCHS = 3


class Training(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Small()
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def step(self, batch, *_):
        x, y = batch
        return self.loss(self(x), y)

    training_step = validation_step = step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Whole(LightningModule):
    """A LightningModule with its own layers, and batches that are dicts."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(90, 7), nn.Linear(7, C)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch["x"]), batch["labels"])

    def validation_step(self, batch, _):
        self(batch["x"])

    configure_optimizers = Training.configure_optimizers


def fit(module, callback, folder, loader=None):
    loader = loader or DataLoader(TensorDataset(*images()), batch_size=BATCH)
    trainer = Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=TensorBoardLogger(str(folder), "", ""),
        callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    return trainer


def logged(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"images": 0, "scalars": 0})
    events.Reload()
    return events


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2]), (2, [0, 2]), (0, [])])
def test_what_is_logged(tmp_path, every, epochs):
    module = Training()
    trainer = fit(module, LogDiscriminability(every=every), tmp_path)
    x, y = images()
    with torch.no_grad():
        net = module.net.eval()
        expected = feature_discriminability(net.features(net.first(x).relu()), y, C).summary()
    got = {name: trainer.callback_metrics[f"discriminability/{name}"] for name in expected}
    assert {name: value.item() for name, value in got.items()} == pytest.approx(expected, 1e-4)
    events = logged(tmp_path)
    scalars = events.Scalars("discriminability/mean_gini")
    assert len(scalars) == EPOCHS  # not of the check before training
    assert scalars[-1].value == pytest.approx(expected["mean_gini"], 1e-4)
    steps = [4, 8, 12]
    tags = events.Tags()["images"]
    drawn = [each.step for tag in tags for each in events.Images(tag)]
    assert drawn == [steps[epoch] for epoch in epochs]
    assert tags == ["discriminability/class_histogram"] * bool(epochs)
    for layer in (module, *module.modules()):
        assert not layer._forward_hooks and not layer._forward_pre_hooks


@pytest.mark.parametrize("layers", [None, "body"])
def test_layers_in_the_module_itself_and_batches_that_are_dicts(tmp_path, layers):
    x, y = images()
    samples = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    module = Whole()
    callback = LogDiscriminability(layers, class_names="abcd", prefix="p", activation="relu")
    trainer = fit(module, callback, tmp_path, DataLoader(samples, 20))
    with torch.no_grad():
        features = module.body(x.flatten(1))
        expected = feature_discriminability(features, y, C, activation="relu")
    assert trainer.callback_metrics["p/mean_gini"].item() == pytest.approx(
        expected.mean_gini.item(), 1e-4
    )


def test_a_network_that_is_named(tmp_path):
    class Two(Training):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(3, 3)

    with pytest.raises(ValueError, match=r"LogDiscriminability\(model='net'\)"):
        fit(Two(), LogDiscriminability(model="other"), tmp_path)
    with pytest.raises(ValueError, match=r"layers contains 'nett', .* near matches: 'net'"):
        fit(Two(), LogDiscriminability(model="nett"), tmp_path)
    trainer = fit(Two(), LogDiscriminability(model="net"), tmp_path)
    assert 0 < trainer.callback_metrics["discriminability/mean_gini"] < 1


def test_a_network_that_hooks_do_not_see(tmp_path):
    class Unseen(Whole):
        def validation_step(self, batch, _):
            self.forward(batch["x"])

    module, loader = Unseen(), DataLoader([{"x": images()[0][0], "labels": 1}])
    with pytest.raises(ValueError, match="model did not run as a module in validation_step"):
        fit(module, LogDiscriminability(), tmp_path, loader)
    assert not module._forward_hooks and not module.head._forward_pre_hooks


@pytest.mark.slow
def test_two_processes_log_the_numbers_of_all_data(tmp_path):
    code = """
import torch
from test_lightning import *

if __name__ == "__main__":
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1,
        callbacks=[LogDiscriminability()],
        logger=TensorBoardLogger(".", "", ""), enable_checkpointing=False,
    )
    data = TensorDataset(*(part[:48] for part in images()))
    module, loader = Training(), DataLoader(data, 8)
    trainer.fit(module, loader, loader)
    x, y = data.tensors
    net = module.net.eval()
    features = net.features(net.first(x).relu()).detach()
    expected = feature_discriminability(features, y, C).summary()
    got = {name: trainer.callback_metrics[f"discriminability/{name}"].item() for name in expected}
    assert got == pytest.approx(expected, 1e-4), (got, expected)
    print("as expected")
"""
    run_in_two_processes(code, tmp_path)


@pytest.mark.slow
def test_a_process_without_a_batch(tmp_path):
    """First rank 0, before it knows the numbers of features and classes; then rank 1."""
    code = """
import datetime
import torch
from test_lightning import *
from lightning.pytorch.strategies import DDPStrategy

class OfOneRank(torch.utils.data.IterableDataset):
    def __init__(self, rank):
        self.rank = rank

    def __iter__(self):
        mine = torch.distributed.get_rank() == self.rank
        return zip(*images()) if mine else iter(())

class Validated(Training):
    def validation_step(self, batch, _):
        self(batch[0])

if __name__ == "__main__":
    trainer = Trainer(
        accelerator="cpu", devices=2, callbacks=[LogDiscriminability()], logger=False,
        strategy=DDPStrategy(timeout=datetime.timedelta(seconds=30)),
    )
    torch.manual_seed(0)
    module, (x, y) = Validated(), images()
    net = module.net.eval()
    features = net.features(net.first(x).relu()).detach()
    expected = feature_discriminability(features, y, C).summary()
    for rank in (1, 0):
        (got,) = trainer.validate(module, DataLoader(OfOneRank(rank), BATCH), verbose=False)
        got = {name: got[f"discriminability/{name}"] for name in expected}
        assert got == pytest.approx(expected, 1e-4), (got, expected)
    print("as expected")
"""
    run_in_two_processes(code, tmp_path)


def run_in_two_processes(code, folder):
    (folder / "fit.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "fit.py"], cwd=folder, env=environment,
                            capture_output=True, text=True, timeout=300)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("as expected") == 2


class Nothing(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


def test_validation_without_a_batch_logs_nothing():
    """Lightning calls the callback where an empty loader has no length."""
    trainer = Trainer(accelerator="cpu", callbacks=[LogDiscriminability()], logger=False)
    trainer.validate(Training(), DataLoader(Nothing()), verbose=False)
    assert not trainer.callback_metrics


def test_bad_options():
    with pytest.raises(ValueError, match="every is -1, expected a number of epochs, or 0"):
        LogDiscriminability(every=-1)
    with pytest.raises(TypeError, match="layers is a list, expected one layer"):
        LogDiscriminability(["net", "head"])


def test_the_first_dimension_holds_no_features(tmp_path):
    with pytest.raises(ValueError, match="feature_dim is 0"):
        fit(Training(), LogDiscriminability(feature_dim=0), tmp_path)
