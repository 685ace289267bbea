"""The loss of tuning on the answers' places alone, where TRL would score every place.

Without Triton, as on a CPU, TRL puts all places of a batch through the output layer, prompts and padding too:
half of a small model's step. Importing this file loads TRL.
"""

import inspect
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from gag.training.lora import MOST_LOGITS

IGNORED = -100  # the label of a place that no loss counts


class AnswerTrainer(SFTTrainer):
    """TRL's trainer with the same loss; evaluation and a mixture's balance take TRL's own way."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the cross-entropy of a micro-batch's labels, over the labels of the whole step."""
        if return_outputs or not model.training or self.aux_loss_enabled or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]  # [B, T - 1], each of the place before it
        places = (labels != IGNORED).any(0).nonzero()[:, 0]  # that some row has a label for
        own: Any = self.model
        vocabulary = own.config.get_text_config().vocab_size
        if len(labels) * len(places) * vocabulary > MOST_LOGITS:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        del inputs["labels"]
        logits = model(**inputs, use_cache=False, logits_to_keep=places).logits  # [B, P, V]
        wanted = labels[:, places].flatten()
        total = cross_entropy(logits.flatten(0, 1).float(), wanted, ignore_index=IGNORED, reduction="sum")
        return total * self.accelerator.num_processes / num_items_in_batch  # DDP averages over the processes


def trainer_class(model: torch.nn.Module, device: torch.device, packed: bool) -> type[SFTTrainer]:
    """Choose the trainer of a model: ours on a CPU, where the model's forward can leave places out."""
    leaves_out = "logits_to_keep" in inspect.signature(type(model).forward).parameters
    return AnswerTrainer if device.type == "cpu" and leaves_out and not packed else SFTTrainer
