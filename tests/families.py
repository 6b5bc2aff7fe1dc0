"""Networks that none of us wrote: families of `transformers` from their config classes, random
weights, small enough for two cores.
"""

import os
from typing import Any

import torch
from torch import nn

from autoprune.tasks.protocol import Inputs

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import transformers

SIDE, TOKENS, VOCABULARY = 64, 32, 1000

VISION = {"image_size": SIDE, "patch_size": 8}
TEXT = {"vocab_size": VOCABULARY, "pad_token_id": 0}
ENCODER = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 384,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", ENCODER | VISION),
    "DeiT": ("DeiTForImageClassification", ENCODER | VISION),
    "Swin": (
        "SwinForImageClassification",
        {
            "image_size": SIDE,
            "window_size": 4,
            "embed_dim": 48,
            "depths": [2, 2, 4],
            "num_heads": [3, 6, 12],
        },
    ),
    "BERT": ("BertForSequenceClassification", ENCODER | TEXT),
    "RoBERTa": ("RobertaForSequenceClassification", ENCODER | TEXT | {"pad_token_id": 1}),
    "ELECTRA": ("ElectraForSequenceClassification", ENCODER | TEXT | {"embedding_size": 48}),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        {"dim": 96, "n_layers": 4, "n_heads": 6, "hidden_dim": 384} | TEXT,
    ),
    "GPT-2": (
        "GPT2ForSequenceClassification",
        {"n_embd": 96, "n_layer": 4, "n_head": 6} | TEXT,
    ),
    "OPT": (
        "OPTForSequenceClassification",
        {
            "hidden_size": 96,
            "word_embed_proj_dim": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "ffn_dim": 384,
        }
        | TEXT
        | {"pad_token_id": 1},
    ),
    "Llama": (
        "LlamaForSequenceClassification",
        {
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 256,
        }
        | TEXT
        | {"pad_token_id": 1},
    ),
    "ResNet": (
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [64, 128, 256], "depths": [2, 3, 2]},
    ),
    "ConvNeXt": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [32, 64, 128], "depths": [2, 3, 2], "num_stages": 3},
    ),
    "RegNet": (
        "RegNetForImageClassification",
        {
            "embedding_size": 16,
            "hidden_sizes": [32, 64, 128],
            "depths": [1, 2, 2],
            "groups_width": 16,
        },
    ),
    "MobileNetV1": (
        "MobileNetV1ForImageClassification",
        # without it hardly any gradient comes through: it drops 99.9% of the features
        {"image_size": SIDE, "depth_multiplier": 0.5, "classifier_dropout_prob": 0.1},
    ),
    "MobileNetV2": (
        "MobileNetV2ForImageClassification",
        {"image_size": SIDE, "depth_multiplier": 0.5},
    ),
    "EfficientNet": (
        "EfficientNetForImageClassification",
        {"image_size": SIDE, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    ),
    "SqueezeBERT": (
        "SqueezeBertForSequenceClassification",
        ENCODER | TEXT | {"embedding_size": 96},
    ),
    "BiT": (
        "BitForImageClassification",
        {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [2, 2], "num_groups": 8},
    ),
}


class Logits(nn.Module):
    """The class scores alone of a network that returns them among other things."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(*args, **kwargs).logits
        return logits


def family(name: str) -> tuple[nn.Module, Inputs]:
    """A network with random weights of seed 0, in evaluation mode, and an example input."""
    architecture, arguments = CONFIGS[name]
    make: Any = getattr(transformers, architecture)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = make.config_class(num_labels=10, **arguments)
        network = Logits(make(config)).eval()
        if "vocab_size" in arguments:
            return network, {"input_ids": torch.randint(2, VOCABULARY, (1, TOKENS))}
        return network, torch.randn(1, 3, SIDE, SIDE)
