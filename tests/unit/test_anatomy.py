"""Groups taken apart: roles, names of units, and kinds that cut whole modules."""

import numpy as np
import pytest
import torch

from autoprune.domain.space import Group
from autoprune.measurement.cost import costs
from autoprune.models import mobilenet, resnet, vgg, vit
from autoprune.pruning.anatomy import (
    Part,
    Role,
    gone_units,
    params_in,
    parts_of,
    unit_names,
    went_with,
)
from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import Cut
from autoprune.pruning.graph import trace
from autoprune.pruning.separable import separable_macs

IMAGE = torch.zeros(1, 1, 8, 8)


def member(layer: str, side: str, start: int, stop: int, unit: int | None = None) -> Member:
    """A member whose indices belong each to a unit of its own, or all to one."""
    index = np.arange(start, stop, dtype=np.int64)
    units = index - start if unit is None else np.full(len(index), unit, np.int64)
    return Member(layer, side, index, units)  # type: ignore[arg-type]


def coupling(name: str, kind: str, size: int, *members: Member) -> Coupling:
    return Coupling(Group(name, kind, size), members, np.zeros(size, np.int64))


DENSE = (
    coupling("a", "channels", 8, member("a", "out", 0, 8), member("read", "in", 0, 8)),
    coupling("b", "channels", 4, member("b", "out", 0, 4), member("read", "in", 8, 12)),
    coupling(
        "read:inputs",
        "connections",
        2,
        *(member("read", side, 0, 8, unit=0) for side in ("in", "reads")),
        *(member("read", side, 8, 12, unit=1) for side in ("in", "reads")),
    ),
)


def test_connections_are_named_after_the_groups_that_they_read() -> None:
    assert unit_names(DENSE[2], DENSE) == ("a", "b")
    assert unit_names(DENSE[1], DENSE) == ("0", "1", "2", "3")


def test_a_connection_is_gone_where_all_that_it_reads_is_not_read_any_more() -> None:
    # what `reads` removes is counted among the inputs that are left
    cuts = [Cut("read", "in", ((2, 3), (8, 12))), Cut("read", "reads", ((7, 11),))]  # type: ignore[arg-type]
    assert gone_units(DENSE[2], cuts) == (1,)
    assert gone_units(DENSE[2], cuts[:1]) == (1,)
    assert gone_units(DENSE[0], cuts) == ()
    assert gone_units(DENSE[2], [Cut("read", "in", ((9, 12),))]) == ()
    assert gone_units(DENSE[2], []) == ()


def test_a_branch_is_named_after_its_group_and_takes_its_layers_along() -> None:
    branches = coupling(
        "a:branches",
        "branches",
        2,
        member("read", "in", 0, 8, unit=0),
        Member("a", "branch", np.zeros(1, np.int64), np.zeros(1, np.int64)),  # type: ignore[arg-type]
        member("read", "in", 8, 12, unit=1),
        Member("b", "branch", np.zeros(1, np.int64), np.ones(1, np.int64)),  # type: ignore[arg-type]
    )
    every = (*DENSE[:2], branches)
    assert unit_names(branches, every) == ("a", "b")
    cuts = [Cut("b", "branch", ((0, 1),)), Cut("read", "in", ((8, 12),))]  # type: ignore[arg-type]
    assert gone_units(branches, cuts) == (1,)
    assert gone_units(DENSE[1], cuts) == (0, 1, 2, 3), "a layer that is gone has no cut of its own"
    assert [went_with(c, cuts) for c in every] == [(), ("b",), ()]
    assert gone_units(DENSE[0], cuts) == ()


def test_a_group_inside_of_a_bypassed_block_is_gone_with_it() -> None:
    inner = coupling(
        "blocks.1.up", "neurons", 3, member("blocks.1.up", "out", 0, 3),
        member("blocks.1.down", "in", 0, 3),
    )  # fmt: skip
    assert gone_units(inner, [Cut("blocks.1", "block", ((0, 1),))]) == (0, 1, 2)
    assert gone_units(inner, [Cut("blocks.10", "block", ((0, 1),))]) == ()
    assert went_with(inner, [Cut("blocks.1", "block", ((0, 1),))]) == ("blocks.1",)
    assert went_with(inner, [Cut("blocks.10", "block", ((0, 1),))]) == ()


def test_roles_in_a_convolutional_network_and_in_an_attention() -> None:
    net = vgg(depth=8, width=4, in_channels=1, image_side=8)
    first = trace(net, IMAGE).couplings[0]
    assert parts_of(first, net) == (
        Part("features.0", Role.MAKES),
        Part("features.1", Role.FOLLOWS),
        Part("features.4", Role.READS),
    )
    net = vit(width=32, depth=2, in_channels=1, image_side=8)
    found = {c.group.name: c for c in trace(net, IMAGE).couplings}
    inner = "blocks.0.attention"
    assert parts_of(found[inner], net) == (
        Part(inner, Role.MAKES),
        Part(f"{inner}.out_proj", Role.READS),
    )
    roles = {part.layer: part.role for part in parts_of(found["embed"], net)}
    assert roles[inner] is Role.READS
    assert roles[f"{inner}.out_proj"] is Role.MAKES
    assert roles["positions"] is roles["blocks.0.norm1"] is Role.FOLLOWS
    blocks = found["blocks.0:blocks"]
    assert parts_of(blocks, net) == (Part("blocks.0", Role.UNIT), Part("blocks.1", Role.UNIT))
    assert unit_names(blocks, found.values()) == ("blocks.0", "blocks.1")
    assert unit_names(found[inner], found.values()) == ("0", "1")


def test_parameters_of_heads_of_blocks_and_of_those_that_stay() -> None:
    net = vit(width=32, depth=2, in_channels=1, image_side=8)
    found = {c.group.name: c for c in trace(net, IMAGE).couplings}
    # rows and biases of queries, keys and values, and the columns that read them
    assert params_in(found["blocks.0.attention"], net) == 3 * 32 * 33 + 32 * 32
    whole = sum(p.numel() for p in net.blocks.parameters())
    assert params_in(found["blocks.0:blocks"], net) == whole
    net = resnet(depth=14, width=8, in_channels=1)
    stack = next(c for c in trace(net, IMAGE).couplings if c.group.kind == "blocks" and c.pinned)
    (stays, *others) = (net.get_submodule(m.layer) for m in stack.members)
    assert params_in(stack, net) == sum(p.numel() for o in others for p in o.parameters())
    assert params_in(stack, net) > 0 < sum(p.numel() for p in stays.parameters())


def test_how_much_of_a_network_is_depthwise_separable() -> None:
    net = mobilenet(width=0.5, in_channels=1).eval()
    macs = costs(net, IMAGE)["macs"]
    inside = separable_macs(net, IMAGE, trace(net, IMAGE).couplings)
    assert 0.7 * macs < inside < macs
    assert net.training is False
    plain = vgg(depth=8, width=4, in_channels=1, image_side=8)
    assert separable_macs(plain, IMAGE, trace(plain, IMAGE).couplings) == 0.0


@pytest.mark.parametrize("pointwise", [torch.nn.Conv2d(4, 6, 1), torch.nn.ConvTranspose2d(4, 6, 1)])
def test_multiplications_of_a_depthwise_and_its_pointwise_convolutions_are_counted_whole(
    pointwise: torch.nn.Module,
) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 1),
        torch.nn.Conv2d(4, 4, 3, padding=1, groups=4),
        pointwise,
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 64, 2),
    )
    found = separable_macs(net, IMAGE, trace(net, IMAGE).couplings)
    assert found == 64 * (1 * 4 + 9 * 4 + 4 * 6)
    assert costs(net, IMAGE)["macs"] - found == 6 * 64 * 2
