"""Lightning: the module holds the model and the criterion, and training_step calls both."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from discfused import FusedDiscLoss


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 5))
        self.criterion = FusedDiscLoss.attach(self.model)

    def training_step(self, batch, batch_idx):
        x, target = batch
        loss = self.criterion(self.model(x), target)
        self.log_dict({"loss": loss, **self.criterion.terms._asdict()}, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        mean = self.trainer.callback_metrics
        print(
            f"epoch {self.current_epoch}: loss {mean['loss_epoch']:.3f} = ce {mean['ce_epoch']:.3f}"
            f" + (gini {mean['gini_epoch']:.3f} + kl {mean['kl_epoch']:.3f}) / 2"
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


lightning.seed_everything(0)
target = torch.arange(400) % 5
x = torch.randn(5, 20)[target] + torch.randn(400, 20)
loader = DataLoader(TensorDataset(x, target), batch_size=50, shuffle=True)

trainer = lightning.Trainer(
    max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(Classifier(), loader)
