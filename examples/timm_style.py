"""A loop in the style of timm's train.py: mixup and CutMix, mixed precision, an average of the
weights. The criterion takes soft labels as they are."""

import timm
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3, NativeScaler, random_seed
from torch.utils.data import DataLoader, TensorDataset

from discfused import FusedDiscLoss

random_seed(0)
CLASSES = 5
labels = torch.arange(160) % CLASSES
pictures = torch.randn(CLASSES, 3, 32, 32)[labels] + torch.randn(160, 3, 32, 32)
loader = DataLoader(TensorDataset(pictures, labels), batch_size=40, shuffle=True)

model = timm.create_model("test_resnet", num_classes=CLASSES, drop_rate=0.1)
criterion = FusedDiscLoss.attach(model)
ema = ModelEmaV3(model, decay=0.9)  # a copy of the model is not tapped
mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scaler = NativeScaler(device="cpu")

for epoch in range(5):
    for images, target in loader:
        images, target = mixup(images, target)
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(model(images), target)
        optimizer.zero_grad()
        scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        ema.update(model)
    ce, gini, kl = criterion.terms
    print(f"epoch {epoch}: loss {loss:.3f} = ce {ce:.3f} + (gini {gini:.3f} + kl {kl:.3f}) / 2")
