"""A small sweep of a GPU backend, for compute-sanitizer: `python tests/backends/gpu_sweep.py cuda`.

Every kernel at least once, at sizes that are no multiple of any block. It checks nothing itself:
test_gpu.py does. With TRITON_INTERPRET=1 the smallest shape on the CPU.
"""

import sys

import torch

from discfused import class_histogram, disc_terms
from gpu import DEVICE, REHEARSED, one_or_all

# N, D, C: few classes, more classes than samples, slots cut into pieces, two runs of rows and many
# slots, runs merged twice
SHAPES = [(37, 19, 10), (70, 64, 300), (900, 72, 3), (1500, 33, 1600), (33000, 9, 7)]


def main(backend: str) -> None:
    torch.manual_seed(0)
    shapes = one_or_all(*SHAPES)
    for N, D, C in shapes:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            x = torch.randn(N, D, device=DEVICE).to(dtype).requires_grad_()
            y = torch.randint(0, C, (N,), device=DEVICE)
            y[::5] = -100
            y[: N // 2] = C // 2
            targets = [y, torch.rand(N, C, device=DEVICE)] if C <= 10 and N < 1000 else [y]
            weights = torch.rand(N, device=DEVICE)
            options = {"impurity": "collision", "prior": "uniform", "sample_weight": weights}
            for target in targets:
                sum(disc_terms(x, target, C, backend=backend)).backward()
                sum(disc_terms(x, target, C, backend=backend, **options)).backward()
                class_histogram(x, target, C, backend=backend).sum().backward()
    if not REHEARSED:
        torch.cuda.synchronize()
    print("swept", len(shapes), "shapes")


if __name__ == "__main__":
    main(sys.argv[1])
