"""Attention that loses heads."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec
from autoprune.pruning.attention import NarrowAttention, narrow
from autoprune.pruning.criteria import CRITERIA, Scoring, score
from autoprune.pruning.distill import Distillation, Distilled
from autoprune.pruning.graph import trace
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.reconstruct import Reconstruction, reconstruct
from autoprune.pruning.surgery import prune
from tests.criteria_tasks import Noise

E, H, T, S, B = 12, 3, 5, 4, 2
law = settings(max_examples=25, deadline=None)


class Attentive(nn.Module):
    """One attention between an embedding and a head, as a network that can be pruned."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.embed = nn.Linear(6, E)
        self.attention = nn.MultiheadAttention(E, H, batch_first=True, **options)
        self.head = nn.Linear(E, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0]).mean(1)


class Fused(nn.Module):
    """Queries, keys and values of one layer, as many vision transformers have them."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(E, 3 * E)
        self.proj = nn.Linear(E, E)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Padded(nn.Module):
    """PyTorch's encoder as it is by default, with the padding masked: in evaluation mode its
    layers are given nested tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, E)
        layer = nn.TransformerEncoderLayer(E, 4, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(E, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = x.abs().amax(2) == 0
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=padding)[:, 0])


def seeded(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double().eval()


def whole(seed: int = 0, **options: object) -> nn.MultiheadAttention:
    return seeded(lambda: nn.MultiheadAttention(E, H, **options), seed)


def random_tensor(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


masks = st.sampled_from(["none", "bool", "float", "each"])


@law
@given(
    masks,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([{}, {"kdim": 7, "vdim": 8}, {"bias": False}]),
)
def test_a_whole_narrow_attention_is_pytorchs(mask, padded, batch_first, weights, average, options):
    attention = whole(batch_first=batch_first, **options)
    narrowed = NarrowAttention(copy.deepcopy(attention)).eval()
    query = random_tensor(B, T, E)
    key, value = (random_tensor(B, S, n) for n in (options.get("kdim", E), options.get("vdim", E)))
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    allowed = torch.rand(T, S, generator=torch.Generator().manual_seed(3)) < 0.7
    allowed[:, 0] = True
    given_mask = {
        "none": None,
        "bool": ~allowed,
        "float": torch.zeros(T, S, dtype=torch.float64).masked_fill(~allowed, -1.5),
        "each": (~allowed).expand(B * H, T, S),
    }[mask]
    padding = None
    if padded:
        padding = torch.zeros(B, S, dtype=torch.bool)
        padding[1, -1] = True
    call = {
        "attn_mask": given_mask,
        "key_padding_mask": padding,
        "need_weights": weights,
        "average_attn_weights": average,
    }
    expected, found = attention(query, key, value, **call), narrowed(query, key, value, **call)
    torch.testing.assert_close(found[0], expected[0])
    if weights:
        torch.testing.assert_close(found[1], expected[1])
    else:
        assert found[1] is None


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dropout": 0.3}])
@pytest.mark.parametrize("kept", [1, 2])
def test_heads_that_nobody_reads_go_without_a_trace(options, kept):
    net, example = seeded(lambda: Attentive(**options)), random_tensor(1, T, 6)
    found = trace(net, example)
    assert [(g.name, g.kind, g.size) for g in found.groups] == [
        ("embed", "neurons", E),
        ("attention", "heads", H),
    ]
    silent = [0, 2][: H - kept]
    with torch.no_grad():
        for head in silent:
            net.attention.out_proj.weight[:, head * E // H : (head + 1) * E // H] = 0
            net.attention.in_proj_weight.view(3, H, -1, E)[:, head] *= 1e-9  # the lightest
    pruned = prune(net, example, PruningSpec.of({"attention": kept}), dependencies=found)
    cut = pruned.model.attention
    assert (cut.num_heads, cut.embed_dim, tuple(cut.in_proj_weight.shape)) == (
        kept,
        E,
        (3 * kept * E // H, E),
    )
    x = random_tensor(3, T, 6)
    torch.testing.assert_close(pruned.model(x), net(x))
    assert isinstance(net.attention, nn.MultiheadAttention)


def test_embedding_and_heads_shrink_apart_and_the_recipe_leads_there_again():
    net, example = seeded(Attentive), random_tensor(1, T, 6)
    pruned = prune(net, example, PruningSpec.of({"attention": 2, "embed": 7}))
    cut = pruned.model.attention
    assert tuple(cut.in_proj_weight.shape) == (3 * 2 * E // H, 7)
    assert tuple(cut.out_proj.weight.shape) == (7, 2 * E // H)
    recipe = Recipe.from_json(pruned.recipe.to_json())
    again = rebuild(recipe, pruned.model.state_dict(), model=net)
    x = random_tensor(3, T, 6)
    assert torch.equal(again(x), pruned.model(x))
    pruned.model.train()(x).sum().backward()
    assert cut.in_proj_weight.grad is not None


def test_an_embedding_alone_shrinks_too():
    net, example = seeded(Attentive), random_tensor(1, T, 6)
    pruned = prune(net, example, PruningSpec.of({"embed": 5}))
    assert pruned.model.attention.num_heads == H
    assert pruned.model(random_tensor(3, T, 6)).shape == (3, 2)


def test_the_heads_of_a_fused_projection_are_found_by_its_width():
    net = seeded(lambda: nn.Sequential(nn.Linear(6, E), Fused(4), nn.Linear(E, 2)))
    found = trace(net, random_tensor(1, T, 6))
    heads = {g.name: g.size for g in found.groups if g.kind == "heads"}
    assert heads == {"1": 4}
    pruned = prune(net, random_tensor(1, T, 6), PruningSpec.of({"1": 1}), dependencies=found)
    assert (pruned.model[1].num_heads, pruned.model[1].qkv.out_features) == (1, 3 * E // 4)


def test_heads_in_an_encoder_layer_of_pytorch_go_in_training_and_in_evaluation():
    layer = seeded(lambda: nn.TransformerEncoderLayer(E, H, 8, dropout=0.0, batch_first=True))
    net = nn.Sequential(layer, seeded(lambda: nn.Linear(E, 2)))
    pruned = prune(net, random_tensor(1, T, E), PruningSpec.of({"0.self_attn": 1})).model
    x = random_tensor(3, T, E)
    with torch.no_grad():
        quick = pruned.eval()(x)  # the layer's fast path must not take the attention for a whole
    torch.testing.assert_close(pruned.train()(x), quick)


def test_keys_of_its_own_keep_an_attention_whole():
    net = seeded(lambda: Attentive(add_bias_kv=True))
    reasons = {
        r.name: r.reason
        for r in trace(
            seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), net)),
            random_tensor(1, T, 6),
        ).refused
    }
    assert "it appends keys and values of its own" in reasons["3.attention"]
    assert "MultiheadAttention '3.attention'" in reasons["3.embed"]


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"se_gate", "bn_scale", "apoz"}))
def test_every_criterion_tells_heads_apart(name):
    net, example = seeded(Attentive), random_tensor(1, T, 6)
    couplings = trace(net, example).couplings
    scores = score(net, couplings, CRITERIA[name], Scoring(Noise((T, 6), classes=2), batches=1))
    assert len(np.unique(scores["attention"].numpy())) == H


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_every_group_of_an_encoder_with_masked_padding_can_be_cut():
    net, example = seeded(Padded), random_tensor(2, T, 6)
    example[1, 2:] = 0
    found = trace(net, example)
    assert {g.kind for g in found.groups} == {"neurons", "heads", "blocks"}
    whole = {g.name: g.size for g in found.groups}
    halves = {name: size // 2 or 1 for name, size in whole.items()}
    for widths in (halves, *({**whole, name: half} for name, half in halves.items())):
        pruned = prune(net, example, PruningSpec.of(widths), dependencies=found)
        with torch.no_grad():
            said, alone = pruned.model(example), pruned.model(example[1:, :2])
        torch.testing.assert_close(said[1:], alone)  # what is masked has no part in it
        again = rebuild(pruned.recipe, pruned.model.state_dict(), model=net).eval()
        with torch.no_grad():
            assert torch.equal(again(example), said)
        exported = torch.export.export(pruned.model, (example,)).module()
        torch.testing.assert_close(exported(example), said)


def test_an_encoder_with_masked_padding_learns_from_the_one_it_was_cut_from():
    net, task = seeded(Padded).float(), Noise((T, 6), classes=2)
    batch = task.batches("train")[0]
    found = trace(net, task.example())
    pruned = prune(
        net,
        task.example(),
        PruningSpec.of({g.name: g.size // 2 for g in found.groups if "linear1" in g.name}),
        dependencies=found,
    )
    cuts = pruned.recipe.history
    fitted = reconstruct(pruned.model, net, cuts, task, plan=Reconstruction(), seed=0)
    assert fitted == tuple(f"encoder.layers.{i}.linear2" for i in range(3))
    plan = Distillation(hints=1.0, hint_layers=("*linear2",))
    loss = Distilled(task, copy.deepcopy(net), plan, cuts=cuts).loss(pruned.model.train(), batch)
    assert bool(loss.isfinite())


def test_narrow_says_what_it_cannot_take():
    net = nn.Sequential(whole(batch_first=True))
    narrow(net, every=True)
    attention = net[0]
    x = random_tensor(B, T, E)
    with pytest.raises(AutopruneError, match=r"takes inputs of 3 axes, got \[5, 12\]; add a batch"):
        attention(x[0], x[0], x[0])
    with pytest.raises(AutopruneError, match="is_causal is a hint about attn_mask; give the mask"):
        attention(x, x, x, is_causal=True)
    attention.num_heads = 2
    with pytest.raises(
        AutopruneError, match=r"attn_mask has shape \[6, 5, 5\], one for every head"
    ):
        attention(x, x, x, attn_mask=torch.zeros(B * H, T, T, dtype=torch.bool))
