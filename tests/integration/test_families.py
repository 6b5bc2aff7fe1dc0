"""Families of `transformers`, which none of us wrote: groups of every kind found, cut, rebuilt."""

import json
from collections import Counter

import pytest
import torch

from autoprune.domain.bounds import Bounds, build_space
from autoprune.pruning.graph import trace
from autoprune.pruning.isolation import outputs_of
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.surgery import prune
from tests.families import CONFIGS, family

KINDS = {
    "ViT": {"channels": 1, "heads": 4, "neurons": 4, "blocks": 1},
    "DeiT": {"channels": 1, "heads": 4, "neurons": 4, "blocks": 1},
    "Swin": {"heads": 8, "neurons": 9},
    "BERT": {"heads": 4, "neurons": 6, "blocks": 1},
    "RoBERTa": {"heads": 4, "neurons": 6, "blocks": 1},
    "ELECTRA": {"heads": 4, "neurons": 6, "blocks": 1},
    "DistilBERT": {"heads": 4, "neurons": 6, "blocks": 1},
    "GPT-2": {"heads": 4, "neurons": 5, "blocks": 1},
    "OPT": {"heads": 4, "neurons": 5, "blocks": 1},
    "Llama": {"neurons": 4, "blocks": 1},
    "ResNet": {"channels": 18, "blocks": 3},
    "ConvNeXt": {"channels": 3, "neurons": 7, "blocks": 3},
    "RegNet": {"channels": 19, "blocks": 2},
    "MobileNetV1": {"channels": 14},
    "MobileNetV2": {"channels": 25, "blocks": 5},
    "EfficientNet": {"channels": 28, "blocks": 3},
    "SqueezeBERT": {"channels": 5, "neurons": 1},
    "BiT": {"blocks": 2},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_is_cut_in_half_and_rebuilt_bit_for_bit(name):
    model, example = family(name)
    found = trace(model, example)
    assert Counter(group.kind for group in found.groups) == KINDS[name]
    space = build_space(found.groups, Bounds())
    pruned = prune(model, example, space.uniform(0.5), dependencies=found)
    recipe = Recipe.from_json(json.loads(json.dumps(pruned.recipe.to_json())))
    again = rebuild(recipe, pruned.model.state_dict(), model=model)
    assert torch.equal(outputs_of(again, example), outputs_of(pruned.model, example))
    left = sum(p.numel() for p in pruned.model.parameters())
    assert left < 0.8 * sum(p.numel() for p in model.parameters())
