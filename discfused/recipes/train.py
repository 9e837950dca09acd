"""One run: trains and tests a network by a recipe, and writes a row.

The loop uses Lightning Fabric for devices, mixed precision and DistributedDataParallel. A step
depends only on the seed and its number. So an interrupted run that continues from its checkpoint
ends with the same weights as an uninterrupted one (bitwise on the CPU).

Under DistributedDataParallel each process computes the terms of its own batch.
"""

from discfused.recipes import _torchvision  # noqa: F401  # before others import torchvision

# isort: split
import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from discfused import FeatureTap, FusedDiscLoss
from discfused._interrupt import Watch
from discfused.recipes import data, evaluate, models, optimization, processes, records
from discfused.recipes.options import Options, identity
from discfused.recipes.sampler import Batches

TEST_BATCH = 256


def run(options: Options, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains and returns the row. `resume` continues from the checkpoint of the folder, if any.

    Raises:
        records.InUse: another process runs in this folder.
        records.OtherRun: the folder contains another run, or `resume` is missing.
        records.Damaged: the checkpoint or the result cannot be read.
        FloatingPointError: the loss is not finite.
        records.Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    return _row(options, folder, resume)[0]


def run_if_missing(options: Options, folder: Path) -> bool:
    """Starts or continues the run, as `run` does. Returns False if it had already ended."""
    return _row(options, folder, resume=True)[1]


def _row(options: Options, folder: Path, resume: bool) -> tuple[dict[str, Any], bool]:
    """The row of the run, and whether this call trained."""
    fabric = processes.launch(options)
    with contextlib.ExitStack() as held:
        # Only rank 0 reads the folder, because it may change meanwhile.
        found = _look(options, folder, resume, held) if fabric.is_global_zero else None
        found = processes.agreed(fabric, found)
        return found or Training(options, folder, fabric).run(), not found


def _look(
    options: Options, folder: Path, resume: bool, held: contextlib.ExitStack
) -> dict[str, Any] | Exception | None:
    """Locks the folder. Returns the row of a finished run, the error of a failed one, or None."""
    try:
        held.enter_context(records.lock(folder))
        row = records.finished(folder, options, resume)
        return FloatingPointError(row["failed"]) if row and "failed" in row else row
    except (RuntimeError, records.Damaged) as error:
        return error


class Training:
    def __init__(self, options: Options, folder: Path, fabric: Fabric):
        self.options, self.folder, self.fabric = options, folder, fabric
        self.parts = data.load(options.data, options.seed)
        self.num_classes = len(self.parts.classes)
        self.batches = Batches(
            self.parts.train.labels,
            options.train.batch_size,
            options.data.samples_per_class,
            seed=options.seed,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
        self.per_epoch = self.batches.steps_per_epoch
        self.steps = self.per_epoch * options.train.epochs
        if options.train.max_steps is not None:
            self.steps = min(self.steps, options.train.max_steps)

        torch.manual_seed(options.seed)
        # The bare network, for hooks, state_dict and tests.
        self.network = models.build(options.model, self.num_classes, options.data.image_size)
        self.optimizer = optimization.optimizer(self.network, options.train)
        self.schedule = optimization.schedule(
            self.optimizer, options.train, self.steps, self.per_epoch
        )
        self.model, self.stepper = fabric.setup(self.network, self.optimizer)
        self.average = None
        if options.train.ema is not None:
            decay = get_ema_multi_avg_fn(options.train.ema)
            self.average = AveragedModel(self.network, multi_avg_fn=decay, use_buffers=True)
        loss = options.loss
        self.criterion = FusedDiscLoss(
            gini_weight=0.0,
            kl_weight=0.0,
            label_smoothing=loss.label_smoothing,
            feature_dim=loss.feature_dim,
            **evaluate.term_options(loss),
        )
        self.watch = Watch(alone=fabric.world_size == 1)
        self.step = 0
        self.best: dict[str, Any] | None = None  # the best network on the held-out images so far
        self.seconds = 0.0  # with tests, and with earlier processes of this run

    def run(self) -> dict[str, Any]:
        fabric, train = self.fabric, self.options.train
        self.load()
        start = self.step
        logs = {}
        if fabric.is_global_zero:
            records.describe(self.options, self.folder, fabric.device, fabric.world_size)
            parts = [part for part in records.COLUMNS
                     if part != "validation" or self.parts.validation is not None]  # fmt: skip
            logs = {part: records.Log(self.folder, part, start) for part in parts if part != "test"}
            # `finish` writes the row of the last step, again where it was stopped after that.
            logs["test"] = records.Log(self.folder, "test", min(start, self.steps - 1))
        self.batches.start, self.batches.stop = start, self.steps
        loader = data.loader(self.parts.train, self.batches, self.options.data.workers)
        loader = cast(
            DataLoader[Any], fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        )
        bar = tqdm(total=self.steps, initial=start, unit="step", desc=self.folder.name,
                   disable=None if fabric.is_global_zero else True)  # fmt: skip
        loss = self.options.loss
        began = time.perf_counter() - self.seconds
        try:
            with self.watch:
                with FeatureTap(self.network, loss.layers, capture=loss.capture) as tap, bar:
                    for images, target in loader:
                        values = self.train_step(images, target, tap)
                        bar.update()
                        self.seconds = time.perf_counter() - began
                        if values and logs:
                            logs["train"].write(self.step, values)
                            bar.set_postfix(ce=f"{values['ce']:.3f}", gini=f"{values['gini']:.3f}")
                        done = self.step == self.steps
                        epoch, rest = divmod(self.step, self.per_epoch)
                        due = train.eval_every and not rest and epoch % train.eval_every == 0
                        if logs and (due or done):
                            self.look(logs, done)
                        # Also before the final test, which may be interrupted.
                        if self.watch.asked or done or self.step % train.save_every == 0:
                            self.save()
                        self.stop_if_asked()
                row = self.finish(logs["test"]) if logs else None
                self.stop_if_asked()
            row = processes.agreed(fabric, row)
            return cast(dict[str, Any], row)
        finally:
            for log in logs.values():
                log.close()

    def stop_if_asked(self) -> None:
        if self.watch.asked:
            raise records.Interrupted(self.step, self.steps)

    def train_step(self, images: Tensor, target: Tensor, tap: FeatureTap) -> dict[str, float]:
        """One optimizer step. Returns the values to log, if any."""
        options, fabric = self.options, self.fabric
        # A seed for each step (for dropout etc.), so a checkpoint needs no generator state.
        step_of_rank = self.step * fabric.world_size + fabric.global_rank
        torch.manual_seed((options.seed * 1_000_003 + step_of_rank) % 2**63)
        weights = optimization.term_weights(options.loss, self.step, self.steps, self.per_epoch)
        self.criterion.gini_weight, self.criterion.kl_weight = weights
        logits = self.model(images)
        features = tap.take(logits)
        loss = self.criterion(logits, target, features)
        fabric.backward(loss)
        if options.train.clip is not None:
            fabric.clip_gradients(
                self.model, self.stepper, max_norm=options.train.clip, error_if_nonfinite=False
            )
        self.stepper.step()
        self.stepper.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.network)
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.step += 1

        every = options.train.log_every
        checked = self.step % every == 0 or self.step % options.train.save_every == 0
        if not (checked or self.step in (1, self.steps)):
            return {}
        of_loss: Any = self.criterion.terms  # of this step
        terms = {name: term.item() for name, term in of_loss._asdict().items()}
        mean: Any = fabric.all_reduce(loss.detach(), reduce_op="mean")
        self.check_finite(mean.item(), terms)
        layers = evaluate.pooled(features, options.loss)
        right = (logits.argmax(1) == target).float().mean().item()
        live = evaluate.live_share(layers, target, self.num_classes, options.loss).item()
        settings = dict(zip(("lr", "gini_weight", "kl_weight"), (rate, *weights), strict=True))
        return settings | terms | {"live": live, "accuracy": 100 * right}

    def check_finite(self, loss: float, terms: dict[str, float]) -> None:
        if math.isfinite(loss):
            return
        found = ", ".join(f"{name} {value}" for name, value in terms.items())
        raise FloatingPointError(
            f"the loss is {loss} at step {self.step} of {self.steps} ({found}): try a lower "
            "train.lr, train.clip, or train.precision bf16-mixed in place of 16-mixed"
        )

    def look(self, logs: dict[str, records.Log], done: bool) -> None:
        """Tests the network on held-out images or test images, and logs the result."""
        part = "test" if self.parts.validation is None else "validation"
        if part == "test" and done:
            return  # `finish` tests it
        values = self.evaluate(getattr(self.parts, part))
        logs[part].write(self.step, values)
        best = self.best is None or values["accuracy"] > self.best["accuracy"]
        if self.options.train.select == "best" and best:
            state = {name: tensor.clone() for name, tensor in self.tested().state_dict().items()}
            self.best = {"accuracy": values["accuracy"], "step": self.step, "state": state}

    def evaluate(self, images: data.Images, final: bool = False) -> dict[str, float]:
        keys = data.in_order(images, TEST_BATCH)
        loader = data.loader(images, keys, self.options.data.workers)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in loader:
                if final:  # earlier tests end first, because the checkpoint comes after them
                    self.stop_if_asked()
                yield batch

        return evaluate.evaluate(
            self.tested(), batches(), self.num_classes, self.options.loss, self.fabric.device
        )

    def tested(self) -> nn.Module:
        return self.network if self.average is None else self.average.module

    def finish(self, log: records.Log) -> dict[str, Any] | FloatingPointError:
        if self.best is not None:
            self.tested().load_state_dict(self.best["state"])
        result = self.evaluate(self.parts.test, final=True)
        log.write(self.step, result)
        if broken := [name for name, value in result.items() if not math.isfinite(value)]:
            return FloatingPointError(
                f"training ended with {', '.join(broken)} not finite on the test images: try a "
                "lower train.lr or train.clip"
            )
        state = {name: tensor.cpu() for name, tensor in self.tested().state_dict().items()}
        records.save(state, self.folder / records.WEIGHTS)
        if self.best is not None:
            result |= {"best_epoch": math.ceil(self.best["step"] / self.per_epoch),
                       "validation_accuracy": self.best["accuracy"]}  # fmt: skip
        result |= {"steps": self.steps, "seconds": round(self.seconds, 2)}
        where = records.environment(self.fabric.device, self.fabric.world_size)
        row = records.write_result(self.folder, self.options, result, where)
        (self.folder / records.CHECKPOINT).unlink(missing_ok=True)
        return row

    def save(self) -> None:
        if not self.fabric.is_global_zero:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "options": identity(self.options) | {"seed": self.options.seed},
            "processes": self.fabric.world_size,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "best": self.best,
            "average": None if self.average is None else self.average.state_dict(),
        }
        records.save(state, self.folder / records.CHECKPOINT)

    def load(self) -> None:
        # From rank 0's folder, which may be missing on other machines.
        state = None
        if self.fabric.is_global_zero:
            state = records.checkpoint(self.folder, self.options, self.fabric.world_size)
        state = processes.agreed(self.fabric, state)
        if state is None:
            return
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
