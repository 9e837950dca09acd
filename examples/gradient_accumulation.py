"""A batch in parts that fit the memory: a first pass collects the class sums, a second one trains.

The terms are no means over samples, so those of a part say little about the batch. With its class
sums at hand, the mean over the parts is the loss of the batch, and so is the gradient.
"""

import torch
from torch import nn

from discfused import FusedDiscLoss

torch.manual_seed(0)
target = torch.arange(96) % 5
images = torch.randn(5, 1, 8, 8)[target] + torch.randn(20, 96, 1, 8, 8)  # 20 batches
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 5))
criterion = FusedDiscLoss.attach(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for step, batch in enumerate(images):
    parts = list(zip(batch.split(32), target.split(32), strict=True))
    with torch.no_grad(), torch.random.fork_rng():  # dropout drops the same in both passes
        whole = sum(criterion.class_sums(model(x), y) for x, y in parts)
    optimizer.zero_grad()
    mean = 0.0
    for x, y in parts:
        loss = criterion(model(x), y, class_sums=whole) / len(parts)
        loss.backward()
        mean += loss.item()
    optimizer.step()
    print(f"step {step}: loss {mean:.5f}, {criterion.terms.gini.item():.5f} gini")
