"""A plain training loop: the criterion stands where nn.CrossEntropyLoss stood."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from discfused import FusedDiscLoss

torch.manual_seed(0)
labels = torch.arange(400) % 5
pictures = torch.randn(5, 1, 8, 8)[labels] + torch.randn(400, 1, 8, 8)
loader = DataLoader(TensorDataset(pictures, labels), batch_size=50, shuffle=True)

model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 5)
)
criterion = FusedDiscLoss.attach(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

for epoch in range(5):
    for images, target in loader:
        loss = criterion(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ce, gini, kl = criterion.terms  # of the last batch
    print(f"epoch {epoch}: loss {loss:.3f} = ce {ce:.3f} + (gini {gini:.3f} + kl {kl:.3f}) / 2")
