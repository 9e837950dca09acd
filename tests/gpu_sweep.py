"""A small sweep of the CUDA backend, for compute-sanitizer: `python tests/gpu_sweep.py`.

Every kernel at least once, in both ways to read, at sizes that are no multiple of any block. It
checks nothing itself: test_gpu.py does.
"""

import torch

from discfused import class_histogram, disc_terms

# N, D, C: counted rows, present classes, shared slots, one slot with most rows, sorted rows, parts
SHAPES = [(37, 19, 10), (70, 64, 300), (900, 72, 3), (5000, 33, 9000), (4500, 16, 2)]


def main() -> None:
    torch.manual_seed(0)
    for N, D, C in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            x = torch.randn(N, D, device="cuda").to(dtype).requires_grad_()
            y = torch.randint(0, C, (N,), device="cuda")
            y[::5] = -100
            y[: N // 2] = C // 2
            gini, kl = disc_terms(x, y, C, backend="cuda")
            (gini + kl).backward()
            if C < N:
                class_histogram(x, y, C, backend="cuda").sum().backward()
    torch.cuda.synchronize()
    print("swept", len(SHAPES), "shapes")


if __name__ == "__main__":
    main()
