"""The loss over several processes: exact results, and the number of collectives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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
        (ranks.collectives_and_running_sums, 2),
        (ranks.metric, 3),
        pytest.param(ranks.wrapped, 3, marks=pytest.mark.slow),
        pytest.param(ranks.compiled_group, 2, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_in_several_processes(function, processes, tmp_path):
    ranks.run(function, processes, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_by_nccl(tmp_path):
    ranks.run(ranks.on_gpus, 2, tmp_path)


def test_no_group_no_collective():
    """ "world" may stay where a script runs in one process alone."""
    assert fused_disc_loss(**GOOD, process_group="world") == fused_disc_loss(**GOOD)
    x, y = GOOD["features"], GOOD["target"]
    assert disc_terms(x, y, 4, process_group="world") == disc_terms(x, y, 4)


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "distributed.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def start(command, folder) -> subprocess.Popen:
    """Runs the example, without Python's shutdown: on a busy machine, gloo's threads may drop their
    last tensor only then, which aborts the process (any program's, PyTorch 2.11)."""
    script = folder / "run.py"
    run = f"runpy.run_path({str(EXAMPLE)!r})"
    script.write_text(f"import os, runpy, sys\n{run}\nsys.stdout.flush()\nos._exit(0)\n")
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(script)], cwd=folder, env=variables, stdout=subprocess.PIPE, text=True
    )


def printed(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=ranks.LIMIT)
    assert process.returncode == 0
    return output


@pytest.mark.slow
def test_the_example_prints_the_same_losses_for_any_number_of_processes(tmp_path):
    """One process, two processes of torchrun, and two torchrun agents in place of two hosts."""
    alone = printed(start([sys.executable], tmp_path))
    assert alone.count("loss") == 5
    assert printed(start([*TORCHRUN, "--nproc-per-node", "2"], tmp_path)) == alone
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    hosts = [
        start([*TORCHRUN, "--nnodes", "2", "--node-rank", str(host), *rendezvous], tmp_path)
        for host in range(2)
    ]
    assert "".join(map(printed, hosts)) == alone
