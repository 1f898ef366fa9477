"""Trains RecBole's SRGNN on ml-100k and times its epochs.

Run by against_recbole.py in RecBole's own environment, which has no JAX:

    python -m benchmarks.recbole_epochs FOLDER EPOCHS

Does what RecBole's command does, with its defaults for this model and data set:
prepares the data, trains `EPOCHS` epochs with a validation after each, and tests with
the weights of the best. Writes FOLDER/recbole.json.
"""

import json
import sys
import time
from pathlib import Path

import torch

# Makes RecBole 1.2.1 work with current NumPy and torch.
from tests.recbole_side import (
    SRGNN,
    Trainer,
    create_dataset,
    data_preparation,
    ml100k_config,
)


class TimedTrainer(Trainer):
    """RecBole's trainer, which also records how long each part took.

    Attributes:
      seconds: of each epoch's training, and of each validation.
      losses: the mean over the steps of each epoch.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.seconds: dict[str, list[float]] = {"train": [], "valid": []}
        self.losses: list[float] = []

    def _train_epoch(self, train_data, *arguments, **named):
        start = time.perf_counter()
        total = super()._train_epoch(train_data, *arguments, **named)
        self.seconds["train"].append(time.perf_counter() - start)
        self.losses.append(total / len(train_data))
        return total

    def _valid_epoch(self, *arguments, **named):
        start = time.perf_counter()
        found = super()._valid_epoch(*arguments, **named)
        self.seconds["valid"].append(time.perf_counter() - start)
        return found


def main(folder: Path, epochs: int) -> None:
    """Trains and writes the figures."""
    config = ml100k_config(epochs, folder / "saved")
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    torch.manual_seed(0)
    trainer = TimedTrainer(config, SRGNN(config, train.dataset))
    trainer.fit(train, valid, show_progress=False)
    found = trainer.evaluate(test, load_best_model=True, show_progress=False)
    (folder / "recbole.json").write_text(
        json.dumps(
            {
                "train_seconds": trainer.seconds["train"],
                "valid_seconds": trainer.seconds["valid"],
                "loss": trainer.losses[-1],
                "recall": found["recall@10"],
                "mrr": found["mrr@10"],
                "train_examples": len(train.dataset),
                "config": {
                    name: config[name]
                    for name in (
                        "embedding_size",
                        "train_batch_size",
                        "eval_batch_size",
                        "MAX_ITEM_LIST_LENGTH",
                        "learning_rate",
                        "loss_type",
                        "step",
                    )
                },
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    # Popped, because RecBole's Config rejects arguments that it does not know.
    number = int(sys.argv.pop())
    main(Path(sys.argv.pop()).resolve(), number)
