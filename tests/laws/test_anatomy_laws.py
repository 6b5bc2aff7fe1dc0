"""Laws of taking groups apart, over random networks: what is told of a cut is what was cut."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autoprune.domain.space import UNEVEN_KINDS, PruningSpec
from autoprune.models import resnet, vit
from autoprune.pruning.anatomy import Role, gone_units, params_in, parts_of, unit_names
from autoprune.pruning.coupling import cuts_for
from autoprune.pruning.graph import trace
from autoprune.pruning.masks import params_of
from autoprune.pruning.surgery import prune
from tests.random_networks import EXAMPLE, nets, random_net

law = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))


def some(couplings, random):
    """Units to remove of every group, by its name."""
    found = {}
    for coupling in couplings:
        units = random.sample(free(coupling), random.randint(0, len(free(coupling))))
        found[coupling.group.name] = np.array(sorted(units), np.int64)
    return found


def free(coupling):
    """The units that may go, all but one of every cell."""
    units = [
        unit
        for cell in np.unique(coupling.cell)
        for unit in np.flatnonzero(coupling.cell == cell)[1:].tolist()
    ]
    return [unit for unit in units if unit not in coupling.pinned]


@law
@given(nets, st.randoms(use_true_random=False))
def test_the_units_that_are_told_to_be_gone_are_those_that_were_cut(net, random):
    couplings = trace(net, EXAMPLE).couplings
    alike = [c for c in couplings if c.group.kind not in UNEVEN_KINDS]
    others = [c for c in couplings if c.group.kind in ("branches", "connections")]
    for some_of in (alike, *([c] for c in others)):
        removed = some(some_of, random)
        cuts = cuts_for(couplings, removed)
        for coupling in some_of:
            wanted = removed[coupling.group.name].tolist()
            assert list(gone_units(coupling, cuts)) == wanted


@law
@given(nets)
def test_what_belongs_to_a_group_is_what_a_cut_takes_in_proportion(net):
    found = trace(net, EXAMPLE)
    for coupling in found.couplings:
        group = coupling.group
        sides = {(m.layer, m.side) for m in coupling.members}
        both = {layer for layer, _ in sides if {(layer, "in"), (layer, "out")} <= sides}
        if group.kind in UNEVEN_KINDS or both or group.size // group.step < 2:
            continue
        kept = group.step * (group.size // group.step // 2)
        cut = prune(net, EXAMPLE, PruningSpec.of({group.name: kept}), dependencies=found).model
        lost = params_of(net) - params_of(cut)
        assert params_in(coupling, net) * (group.size - kept) / group.size == pytest.approx(lost)


@law
@given(nets)
@example(random_net(["branches", "residual"], False, 0))
def test_every_group_is_made_and_read_and_no_layer_follows_what_it_makes(net):
    couplings = trace(net, EXAMPLE).couplings
    modules = dict(net.named_modules())
    for coupling in couplings:
        parts = parts_of(coupling, net)
        assert len(set(parts)) == len(parts)
        if coupling.group.kind == "blocks":
            assert {part.role for part in parts} == {Role.UNIT}
            continue
        if coupling.group.kind in UNEVEN_KINDS:
            made = [Role.UNIT] if coupling.group.kind == "branches" else []
            # what is added to a branch is cut where it is made
            added = [part for part in parts if part.role is Role.MAKES]
            assert not added or made
            assert {part.role for part in parts} - {Role.MAKES} == {Role.READS, *made}
            continue
        assert coupling.group.name in {p.layer for p in parts if p.role is Role.MAKES}
        assert any(part.role is Role.READS for part in parts)
        follow = {part.layer for part in parts if part.role is Role.FOLLOWS}
        assert not follow & {part.layer for part in parts if part.role is not Role.FOLLOWS}
        assert {part.layer for part in parts} <= modules.keys()
        numbers = [str(unit) for unit in range(coupling.group.size)]
        assert list(unit_names(coupling, couplings)) == numbers


@pytest.mark.parametrize(
    "net",
    [resnet(depth=20, width=8, in_channels=1), vit(width=32, depth=3, in_channels=1, image_side=8)],
    ids=["resnet", "vit"],
)
@law
@given(random=st.randoms(use_true_random=False))
def test_heads_and_blocks_are_told_from_the_cuts_too(net, random):
    couplings = trace(net, torch.zeros(1, 1, 8, 8)).couplings
    removed = some(couplings, random)
    cuts = cuts_for(couplings, removed)
    blocks = [c for c in couplings if c.group.kind == "blocks"]
    assert blocks
    bypassed = tuple(
        f"{unit_names(c, couplings)[unit]}."
        for c in blocks
        for unit in removed[c.group.name].tolist()
    )
    for coupling in couplings:
        gone = list(gone_units(coupling, cuts))
        if all(member.layer.startswith(bypassed) for member in coupling.members):
            assert gone == list(range(coupling.group.size))
        else:
            assert gone == removed[coupling.group.name].tolist()
