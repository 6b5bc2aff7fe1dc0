import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from autoprune import models
from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.surgery import Pruned, prune
from tests.pruning_tasks import Blobs, small_net

EXAMPLE = Blobs().example()
CONFIG = {"_target_": "autoprune.models.mlp", "width": 8, "in_channels": 1, "image_side": 4}
BUILT: list[int] = []


def build(size: int = 3) -> nn.Module:
    """What a stranger's recipe would call."""
    BUILT.append(size)
    return nn.Linear(size, size)


def cut_mlp() -> Pruned:
    net = models.mlp(width=8, in_channels=1, image_side=4)
    group = "hidden.0"
    pruned = prune(net, EXAMPLE, PruningSpec.of({group: 3}))
    return replace(pruned, recipe=replace(pruned.recipe, model=CONFIG))


def plain(**changes) -> dict:
    return json.loads(json.dumps(cut_mlp().recipe.to_json())) | changes


def test_a_built_in_network_comes_back_bit_for_bit_and_trains_on():
    pruned = cut_mlp()
    recipe = Recipe.from_json(json.loads(json.dumps(pruned.recipe.to_json())))
    assert recipe == pruned.recipe
    rebuilt = rebuild(recipe, pruned.model.state_dict())
    batch = torch.randn(5, 1, 4, 4)
    assert torch.equal(rebuilt(batch), pruned.model(batch))
    optimizer = torch.optim.SGD(rebuilt.parameters(), lr=0.1)
    before = rebuilt(batch).square().mean()
    before.backward()
    optimizer.step()
    assert rebuilt(batch).square().mean() < before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_of_the_weights_is_kept(dtype):
    pruned = cut_mlp()
    net = pruned.model.to(dtype)
    rebuilt = rebuild(pruned.recipe, net.state_dict())
    batch = torch.randn(2, 1, 4, 4, dtype=dtype)
    assert torch.equal(rebuilt(batch), net(batch))


def test_the_unpruned_network_can_be_handed_over_and_stays_whole():
    net = small_net()
    pruned = prune(net, EXAMPLE, PruningSpec.of({"0": 3}))
    for model in (net, lambda: copy.deepcopy(net)):
        rebuilt = rebuild(pruned.recipe, pruned.model.state_dict(), model=model).eval()
        assert torch.equal(rebuilt(EXAMPLE), pruned.model.eval()(EXAMPLE))
    assert net[0].out_channels == 8
    with pytest.raises(AutopruneError, match="pass it, or a factory of it, as model="):
        rebuild(pruned.recipe, pruned.model.state_dict())


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "tests.unit.test_recipe.build",
        "autoprune.models.mlp.nn.Linear",
        "autoprune.models.vgg.CONVS_BY_DEPTH",
        "autoprune.models.__all__",
        "autoprune.models.",
        "autoprune.models",
        "mlp",
    ],
)
def test_no_other_target_is_built(target):
    BUILT.clear()
    recipe = Recipe.from_json(plain(model={"_target_": target, "size": 3}))
    with pytest.raises(AutopruneError, match=r"wants to build .* pass allow="):
        rebuild(recipe, {})
    assert not BUILT


def test_a_target_is_built_where_the_caller_allows_it():
    target = f"{__name__}.build"
    recipe = Recipe.from_json(plain(model={"_target_": target, "size": 2}, history=[]))
    state = nn.Linear(2, 2).state_dict()
    assert torch.equal(rebuild(recipe, state, allow=[target]).weight, state["weight"])
    missing = replace(recipe, model={"_target_": "nowhere.net"})
    with pytest.raises(AutopruneError, match=r"allowed target 'nowhere.net' cannot be imported"):
        rebuild(missing, state, allow=["nowhere.net"])
    wrong = replace(recipe, model={"_target_": target, "depth": 2})
    with pytest.raises(AutopruneError, match=r"cannot be built: .*unexpected keyword argument"):
        rebuild(wrong, state, allow=[target])
    with pytest.raises(AutopruneError, match="the unpruned network is a dict, not a module"):
        rebuild(recipe, state, model=dict)


def test_weights_of_another_network_are_refused():
    pruned = cut_mlp()
    state = pruned.model.state_dict()
    state.pop("head.bias")
    with pytest.raises(AutopruneError, match=r"the weights do not fit .*'head.bias'"):
        rebuild(pruned.recipe, state)
    with pytest.raises(AutopruneError, match="the weights do not fit"):
        rebuild(replace(pruned.recipe, history=()), pruned.model.state_dict())


def test_a_network_too_big_for_its_weights_is_never_allocated():
    huge = Recipe.from_json(plain(model=config(width=100_000, depth=9), history=[]))
    with pytest.raises(AutopruneError, match="the weights do not fit"):
        rebuild(huge, cut_mlp().model.state_dict())  # 320 GB


def test_a_users_own_network_may_take_any_number():
    assert replace(cut_mlp().recipe, model={"_target_": "my.net", "seed": 2**40}).model


def a_cut(**changes) -> list:
    return [{"layer": "hidden.0", "side": "out", "removed": [[0, 2]]} | changes]


def config(**arguments) -> dict:
    return CONFIG | arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has version 2; this autoprune reads version 1"),
        ({"version": True}, "'version' is a bool, not a int"),
        ({"history": {}}, "'history' is a dict, not a list"),
        ({"history": ["x"]}, "a cut is a str, not a dict"),
        ({"history": [{}]}, "'side' is missing; it was not written by autoprune"),
        ({"history": a_cut(side="up")}, "side 'up' is not one of"),
        ({"history": a_cut(removed=[[0, 2**40]])}, r"range \[0, 1099511627776\]; give"),
        ({"history": a_cut(removed=[[0.5, 2]])}, r"range \[0.5, 2\]; give"),
        ({"history": a_cut(removed=[[1]])}, r"range \[1\]; give"),
        ({"history": a_cut(removed=[[2, 1]])}, "give ascending, separate ranges"),
        ({"history": a_cut(layer=3)}, "'layer' is a int, not a str"),
        ({"history": a_cut() * 2}, "cuts one side of a layer twice"),
        ({"history": [0] * 100_001}, "100001 cuts; a recipe has 100000 at most"),
        ({"layout": "list"}, "layout 'list' is not one of"),
        ({"inputs": [{"name": "0", "shape": [-1], "dtype": "float32"}]}, "input shape"),
        ({"inputs": [{"name": "0", "shape": [1], "dtype": "nn"}]}, "dtype 'nn' is not one of"),
        ({"spec": {"kept": {"a": 1.5}, "criterion": "l1", "recovery": "x"}}, "keeps 1.5; give"),
        ({"spec": {"kept": {}}}, "'criterion' is missing"),
        (
            {"spec": {"kept": {}, "criterion": "l1", "recovery": "x", "precision": "int4"}},
            "precision 'int4' is none of",
        ),
        ({"model": []}, "model is a list, not a dict"),
        ({"model": {}}, "_target_ is None; it names a callable"),
        ({"model": config(width={"_target_": "os.system"})}, "without a nested _target_"),
        ({"model": config(_args_=[1])}, "argument '_args_' of autoprune.models.mlp"),
        ({"model": config(width=10**9)}, "argument 'width' is 1000000000; it is 100000 at most"),
        ({"model": config(width=float("inf"))}, "argument 'width' is inf"),
        ({"model": config(width=float("nan"))}, "argument 'width' is nan"),
        ({"model": config(width=10**400)}, "argument 'width' is 1000"),
        ({"model": {"_target_": "my.net", "seed": 10**400}}, "argument 'seed' is 1000"),
        ({"model": config(width=[0] * 20_000)}, "too deep or too many"),
    ],
)
def test_malformed_and_hostile_recipes_are_refused(changes, message):
    with pytest.raises(AutopruneError, match=message):
        Recipe.from_json(plain(**changes))


def test_a_deep_recipe_is_refused():
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(AutopruneError, match="too deep or too many"):
        Recipe.from_json(plain(model=config(width=deep)))
    with pytest.raises(AutopruneError, match="the recipe is a list, not a dict"):
        Recipe.from_json([])
    with pytest.raises(AutopruneError, match="is a object; arguments are plain JSON"):
        replace(cut_mlp().recipe, model=config(width=object()))


def test_a_layer_of_a_recipe_is_found_by_name_only():
    recipe = Recipe.from_json(plain(history=a_cut(layer="hidden.__class__")))
    with pytest.raises(AutopruneError, match=r"no layer 'hidden.__class__'"):
        rebuild(recipe, {})


def test_the_example_is_described_whatever_its_shape():
    spec = PruningSpec.of({})
    pair = Recipe.of((), spec, (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)))
    assert [(i.name, i.shape, i.dtype) for i in pair.inputs] == [
        ("0", (1, 2), "float32"),
        ("1", (1,), "int64"),
    ]
    named = Recipe.of((), spec, {"ids": torch.zeros(1, 3, dtype=torch.long)})
    assert (named.layout, named.inputs[0].name) == ("dict", "ids")
    assert Recipe.from_json(named.to_json()) == named
