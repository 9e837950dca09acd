"""The Trainer of transformers, and one that makes its criterion itself.

A compute_loss of your own would also have to multiply by the number of processes, as the Trainer
does after compute_loss_func.
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from discfused import FusedDiscLoss

torch.manual_seed(0)
LABELS = 4
data = [
    {"input_ids": torch.randint(10 * label, 10 * label + 20, (8,)), "labels": label}
    for label in torch.arange(256) % LABELS
]
config = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=64, num_labels=LABELS,
)  # fmt: skip


class DiscTrainer(Trainer):
    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.compute_loss_func = FusedDiscLoss.attach(model).compute_loss_func


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, num_train_epochs=5, per_device_train_batch_size=16, learning_rate=5e-3,
        logging_strategy="epoch", save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip

    model = BertForSequenceClassification(config)
    criterion = FusedDiscLoss.attach(model)
    Trainer(
        model, arguments, train_dataset=data, compute_loss_func=criterion.compute_loss_func
    ).train()

    DiscTrainer(BertForSequenceClassification(config), arguments, train_dataset=data).train()
