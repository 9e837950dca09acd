"""The benchmarks: every competitor computes the same loss, and clocks and counts are right."""

import itertools

import pytest
import torch
from torch import nn

from benchmarks import compare, gpu, measure, timing
from benchmarks.cases import FULL, STEP, Case, Plan, cases, make_inputs
from benchmarks.competitors import (
    COMPILED,
    COPY,
    CROSS_ENTROPY,
    FUSED,
    PLAIN,
    loss_of,
    names,
    why_not,
)
from benchmarks.memory import peak_bytes
from discfused import disc_terms, fused_disc_loss

SMALL = Case(37, 19, 5)
VERIFIED = [
    SMALL,
    SMALL._replace(impurity="collision"),
    SMALL._replace(dtype="bfloat16"),
    SMALL._replace(kind="loss"),
    Case(12, 19, 40),
]
FUSED_ON_CPU = "discfused-cpu"


@pytest.mark.parametrize("case", VERIFIED, ids=lambda case: case.name)
@pytest.mark.parametrize("name", [n for n in (*PLAIN, *FUSED) if not n.startswith(COMPILED)])
def test_competitors_compute_the_same_loss(name, case):
    reason = why_not(name, "cpu", case, compiles=False)
    if reason is None and name not in names(case):
        reason = "not measured"
    if reason is not None:
        pytest.skip(reason)
    inputs = make_inputs(case, "cpu")
    right = measure.expected(case, inputs)
    assert measure.disagreement(loss_of(name, case), inputs, right) is None


def test_what_is_expected_is_the_public_loss_in_float64():
    case = SMALL._replace(impurity="collision")
    inputs = make_inputs(case, "cpu")
    (x,) = inputs.sets[0]
    options = {"impurity": "collision", "backend": "reference"}
    value = sum(disc_terms(x.double(), inputs.y, case.C, **options))
    right = measure.expected(case, inputs)
    assert right[0].item() == pytest.approx(value.item(), rel=1e-12)
    assert torch.allclose(right[1], torch.autograd.grad(value, x)[0].double(), rtol=1e-6)
    case = SMALL._replace(kind="loss")
    inputs = make_inputs(case, "cpu")
    x, logits = (leaf.double() for leaf in inputs.sets[0])
    loss = fused_disc_loss(logits, inputs.y, x, backend="reference")
    assert measure.expected(case, inputs)[0].item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["terms", "loss"])
def test_a_wrong_competitor_is_seen(kind):
    case = SMALL._replace(kind=kind)
    inputs = make_inputs(case, "cpu")
    right = measure.expected(case, inputs)
    loss = loss_of("index_add", case)
    assert "value" in measure.disagreement(lambda *a: 1.0001 * loss(*a), inputs, right)
    for leaf, what in enumerate(("features", "logits")[: len(inputs.sets[0])]):

        def wrong(y, *leaves, leaf=leaf):
            return loss(y, *leaves) + 0.01 * (leaves[leaf] - leaves[leaf].detach()).sum()

        assert what in measure.disagreement(wrong, inputs, right)
    # Another impurity is another loss, also where the gradients are alike.
    other = loss_of("index_add", case._replace(impurity="collision"))
    assert measure.disagreement(other, inputs, right)


def test_one_case_is_measured(monkeypatch):
    monkeypatch.setitem(measure.PLANS, "quick", Plan(0, min_rounds=2, max_rounds=2, turn=0))
    monkeypatch.setitem(PLAIN, "one_hot", lambda x, y, C, impurity: (x.sum(), x.sum()))
    result = measure.measure(SMALL, "cpu", full=False, compiles=False)
    assert "value" in result.failed.pop("one_hot") and not result.failed
    assert result.skipped.keys() >= {"unique", "compiled-reference", "discfused-cuda"}
    timed = {COPY, "index_add", "embedding_bag", "reference", FUSED_ON_CPU} - result.skipped.keys()
    assert result.rows.keys() == set(itertools.product(timed, ("forward", "backward", "both")))
    seconds, facts = result.rows["index_add", "both"]
    assert len(seconds) == facts["calls"] == 2 and facts["others"].keys() == timed - {"index_add"}
    assert facts["peak_bytes"] >= SMALL.N * SMALL.D * 4  # the gradient alone

    tiny = measure.measure(SMALL._replace(kind="loss"), "cpu", full=False, compiles=False)
    assert CROSS_ENTROPY in tiny.rows["index_add", "both"][1]["others"]


def test_every_case_has_a_name_of_its_own():
    for device, full in itertools.product(("cpu", "cuda"), (False, True)):
        found = [case.name for case in cases(device, full)]
        assert len(found) == len(set(found))
    sizes = {case[:3] for case in FULL}
    assert {(8, 16, 10), (128, 512, 100), (8192, 4096, 1000), (1024, 2048, 21841)} <= sizes


def test_a_training_step_trains():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, STEP.C)

        def forward(self, x):
            return self.fc(self.convolution(x).relu().mean((2, 3)))

    network, seen = Network(), []
    before = network.convolution.weight.clone()

    def loss(y, x, logits):
        seen.append((x.shape, logits.dtype))
        return loss_of("index_add", STEP)(y, x, logits)

    gpu.training_step(STEP._replace(N=4), "cpu", network, pixels=8)(loss).call()
    assert seen == [((4, 6), torch.float32)]
    assert not torch.equal(network.convolution.weight, before)


def test_cuda_graphs(monkeypatch):
    monkeypatch.setattr(gpu, "_replays", lambda call, count: [call() / count] * 3)
    subject = timing.Subject(lambda: 2, lambda state: state + 4)
    assert gpu.in_graphs(subject, 2) == {"forward": [1, 1, 1], "both": [3, 3, 3]}

    def fails(call, count):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu, "_replays", fails)
    with pytest.warns(UserWarning, match="not captured in a CUDA graph: operation not permitted"):
        assert gpu.in_graphs(subject, 2) == {}


def test_turns():
    made = {"a": [], "b": []}

    def subject(log: list) -> timing.Subject:
        return timing.Subject(lambda: log.append("f"), lambda state: log.append("b"))

    subjects = {name: subject(log) for name, log in made.items()}
    plan = Plan(seconds=0, min_rounds=3, max_rounds=5, turn=0)
    results = timing.in_turns(subjects, "cpu", plan)
    for name, log in made.items():
        assert log == ["f", "b"] * (timing.WARM_UP_CALLS + 2 * plan.min_rounds)
        for rounds in results[name].values():
            assert len(rounds) == 3 and all(len(calls) == 1 for calls in rounds)
        forward, backward, both = (timing.flat(rounds)[0] for rounds in results[name].values())
        assert both == pytest.approx(forward + backward)


def test_ratios_are_taken_within_rounds():
    assert timing.ratio([[2.0], [20.0], [4.0]], [[1.0], [10.0], [1.0]])[1] == 2
    assert timing.percentiles([1, 2, 3, 4, 5, 6]) == pytest.approx((2, 3.5, 5))


def test_the_copy_moves_the_least_bytes():
    inputs = make_inputs(SMALL, "cpu")
    subject = timing.copies(inputs)
    x = inputs.sets[0][0].detach().view(-1)
    half = len(x) // 2
    assert torch.equal(subject.forward(), x)
    written = subject.backward(x)
    assert torch.equal(written, x) and written.data_ptr() != x.data_ptr()
    written.zero_()
    subject.forward()
    assert torch.equal(written[:half], x[:half]) and not written[half:].any()


def test_peak_memory_sees_temporaries():
    x = torch.ones(1000)
    assert peak_bytes(lambda: (x + 1).sum(), "cpu") >= 4000
    assert peak_bytes(lambda: x.view(10, 100), "cpu") == 0


FAKE = """
import time
from collections import namedtuple

def fused_disc_loss(logits, y, x, *, backend):
    assert backend == "cpu"
    time.sleep({seconds})
    return x.sum() + logits.sum()
"""


def test_two_builds(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(compare, "STARTS", 1)
    folders = []
    for name, seconds in (("old", 0.002), ("new", 0.03)):
        folders.append(str(tmp_path / name))
        package = tmp_path / name / "discfused"
        package.mkdir(parents=True)
        # The processes import the discfused of their folder, and nothing of it but the public API.
        source = FAKE.format(seconds=seconds) + "disc_terms = None\n"
        (package / "__init__.py").write_text(source)
    # The tiny case runs in one thread, so that a busy machine does not make both builds slow.
    arguments = ["--only", "loss-8x16x10", "--rounds", "1"]
    assert compare.main([*folders, *arguments]) == 1
    printed = capfd.readouterr().out
    assert "loss-8x16x10-float32 forward" in printed and "SLOWER" in printed
    assert compare.main([*folders, *arguments, "--threshold", "100"]) == 0
    with pytest.raises(SystemExit, match="holds no discfused"):
        compare.main([str(tmp_path), folders[1], *arguments])
    with pytest.raises(SystemExit, match="no case has '1024x100'"):
        compare.main([*folders, "--only", "1024x100"])
