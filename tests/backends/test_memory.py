"""The CPU backend: reproducible bits, threads and memory."""

import sys

import pytest
import torch

from benchmarks.memory import peak_bytes
from cases import DTYPES, equal, features, labels, soft_labels, step
from discfused import fused_disc_loss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_same_bits_on_every_run_and_for_every_thread_count(fused_backend, dtype, soft):
    check_bits(fused_backend, features(300, 333, dtype), labels_of(300, 50, soft), 50)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_same_bits_of_sums_that_pytorch_would_split_among_threads(soft):
    N, C = 200_000, 3
    weight = torch.rand(N)
    check_bits("cpu", features(N, 2, torch.float32), labels_of(N, C, soft), C, weight)


def labels_of(N, C, soft):
    return soft_labels(N, C) if soft else labels(N, C)


def check_bits(backend, x, y, C, sample_weight=None):
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for count in (threads, 1, 2, 3, 8, *[threads] * 15):
            torch.set_num_threads(count)
            results.append(step(backend, x, y, C, sample_weight=sample_weight))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert all(equal(result, results[0]) for result in results)


@pytest.mark.parametrize(("N", "D", "C"), [(2048, 512, 100), (512, 1024, 21841)])
def test_memory_is_the_table_the_gradient_and_little_more(fused_backend, N, D, C):
    x, y = features(N, D, torch.float32), labels(N, C)
    step(fused_backend, x, y, C)
    table, gradient = 4 * min(N, C) * D, 4 * N * D
    peak = peak_bytes(lambda: step(fused_backend, x, y, C), "cpu")
    assert gradient < peak  # the measure does see what it must
    assert peak < table + gradient + 64 * (N + C) + 32 * D + 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_process_grows_by_no_more_than_that(fused_backend, python):
    """Scratch memory does not come from PyTorch, so this test measures the process."""
    code = f"""
import torch
from discfused import disc_terms

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

disc_terms(torch.rand(64, 8, requires_grad=True), torch.arange(64) % 3, 3)[0].backward()
N, D, C = 16384, 2048, 100
open("/proc/self/clear_refs", "w").write("5")  # the peak is what is held now, not while importing
before = peak()
x = torch.ones(N, D).requires_grad_()
y = torch.arange(N) % C
given = peak() - before
gini, kl = disc_terms(x, y, C, backend={fused_backend!r})
(gini + kl).backward()
print(given, peak() - before)
"""
    given, used = (int(number) / 1024 for number in python(code).split())  # MB
    assert given >= 127
    # the gradient is as large as x; table and scratch are some MB a thread
    assert used < 2 * given + 0.8 + 8 * torch.get_num_threads() + 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_absent_classes_take_no_memory_of_the_process(python):
    """The table has min(N, C) rows, of which only those of the classes present are written."""
    code = """
import resource
import torch
from discfused import disc_terms

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

x, C, kept = torch.ones(12000, 1024).requires_grad_(), 12000, []
disc_terms(x[:64], torch.arange(64), C)
for classes in (4, C):
    before = held()
    kept.append(disc_terms(x, torch.arange(12000) % classes, C))
    print(held() - before)
"""
    # Else the C library may write to all that it hands out.
    printed = python(code, MALLOC_PERTURB_="0")
    few, all_classes = (int(number) / 2**20 for number in printed.split())
    assert all_classes > 40  # a table of 47 MB shows
    assert few < 12


def test_one_criterion_in_several_python_threads(fused_backend):
    """Kernels run without the GIL, and calls share no state."""
    from concurrent.futures import ThreadPoolExecutor

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 64, generator=generator).requires_grad_()
        logits = torch.randn(200, 10, generator=generator)
        loss = fused_disc_loss(logits, torch.arange(200) % 10, x, backend=fused_backend)
        loss.backward()
        return loss.detach(), x.grad

    expected = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(work, range(8)), expected, strict=True):
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
