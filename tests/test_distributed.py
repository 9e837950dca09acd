"""The loss over several processes: exact, with one collective, and none where one could hang."""

import pytest
import torch.distributed as dist

import ranks
from discfused import disc_terms, fused_disc_loss
from test_inputs import GOOD

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo"
)


@pytest.mark.parametrize(
    ("function", "processes"),
    [
        (ranks.one_batch, 4),
        (ranks.wrapped, 3),
        (ranks.compiled_group, 2),
        (ranks.collectives, 2),
        (ranks.running, 2),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_in_several_processes(function, processes, tmp_path):
    ranks.run(function, processes, tmp_path)


def test_no_group_no_collective():
    """ "world" may stay where a script runs in one process alone."""
    assert fused_disc_loss(**GOOD, process_group="world") == fused_disc_loss(**GOOD)
    x, y = GOOD["features"], GOOD["target"]
    assert disc_terms(x, y, 4, process_group="world") == disc_terms(x, y, 4)
