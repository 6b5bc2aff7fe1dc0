"""Networks that travel as exported programs."""

import copy
import pickle
import pickletools
import zipfile
from io import BytesIO

import pytest
import torch
from torch import nn

from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.prepared import prepared
from autoprune.measurement.programs import pack, unpack
from autoprune.measurement.runtimes import OnnxRuntime, OpenVinoRuntime, TorchRuntime
from autoprune.measurement.runtimes.protocol import frozen_copy
from autoprune.tasks.protocol import forward
from tests.contracts.runtime_contract import cases


@pytest.mark.parametrize("case", cases())
def test_a_network_computes_the_same_after_its_journey(case):
    model, example = cases()[case]
    expected = forward(copy.deepcopy(model).eval(), example)
    arrived = unpack(pack(model, example))
    torch.testing.assert_close(forward(arrived, example), expected)
    torch.testing.assert_close(forward(frozen_copy(arrived), example), expected)


@pytest.mark.parametrize("runtime", [TorchRuntime(), OnnxRuntime(), OpenVinoRuntime()], ids=str)
@pytest.mark.parametrize("case", cases())
def test_what_arrives_runs_on_every_runtime(runtime, case):
    model, example = cases()[case]
    prepared(runtime, unpack(pack(model, example)), example)


def test_nothing_that_travels_is_a_pickle():
    model, example = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), torch.ones(1, 1, 8, 8)
    with zipfile.ZipFile(BytesIO(pack(model, example))) as archive:
        for name in archive.namelist():
            with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, IndexError)):
                list(pickletools.genops(archive.read(name)))


class Choosing(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_exported_does_not_travel():
    with pytest.raises(TrialError, match=r"cannot be exported by torch\.export") as caught:
        pack(Choosing(), torch.ones(1, 2))
    assert caught.value.cause is Cause.RUNTIME
