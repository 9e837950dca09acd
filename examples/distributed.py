"""Several processes, one loss: that of all their batches together, as if one process had them all.

    python examples/distributed.py                                  # one process
    torchrun --nproc-per-node 2 examples/distributed.py             # two: the same losses
    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 8 \
        --rdzv-backend c10d --rdzv-endpoint HOST:29400 --rdzv-id run examples/distributed.py
"""

import torch
import torch.distributed as dist
from torch import nn

from discfused import FusedDiscLoss

if dist.is_torchelastic_launched():
    dist.init_process_group()  # NCCL for GPUs, gloo for CPUs
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
device = torch.device(rank % torch.cuda.device_count() if torch.cuda.is_available() else "cpu")

torch.manual_seed(0)  # the same data and the same network everywhere
images, target = torch.randn(120, 1, 8, 8, device=device), torch.arange(120, device=device) % 10
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(device)
if world > 1:
    model = nn.parallel.DistributedDataParallel(model)
criterion = FusedDiscLoss.attach(model, process_group="world")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for step in range(5):
    rows = slice(24 * step + rank, 24 * (step + 1), world)  # what a DistributedSampler does
    loss = criterion(model(images[rows]), target[rows])
    optimizer.zero_grad()
    loss.backward()  # no collective of ours; DDP averages the gradients
    optimizer.step()

    mean = loss.detach().clone()  # the mean over the processes is the loss of all 24 images
    if world > 1:
        dist.all_reduce(mean)
    if rank == 0:
        print(
            f"step {step}: loss {mean.item() / world:.5f}, {criterion.terms.gini.item():.5f} gini"
        )

if dist.is_initialized():
    dist.destroy_process_group()
