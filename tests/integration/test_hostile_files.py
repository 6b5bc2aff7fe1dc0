"""What a stranger's folder, checkpoint or journal can do to the commands that read it: nothing."""

import json
import pickle
import resource
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import autoprune
from autoprune.cli import main
from autoprune.domain.errors import AutopruneError
from autoprune.models import mlp
from autoprune.orchestration.artifacts import RECIPE_FILE, WEIGHTS_FILE
from autoprune.orchestration.baseline import load_checkpoint
from autoprune.orchestration.contest.records import CONTEST_FILE, read_contest
from autoprune.orchestration.folders import JOURNAL_FILE, PROFILE_FILE, RANKING_FILE
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.journal_line import MAX_LINE, encode
from autoprune.orchestration.profile_file import read_profile, read_ranking
from tests.hostile import (
    DEEP,
    IN_PLACE_OF_A_FILE,
    bomb,
    in_time,
    overlapping,
    packed,
    safetensors_header,
)
from tests.sweeps import make_sweep

SMALL = {"width": 16, "depth": 2, "in_channels": 1, "num_classes": 10, "image_side": 8}
GIB = 2**30
REFUSALS = r"is a symbolic link|is no plain file|bytes, \d+ at most|no recipe at|no weights at"
Say = Callable[..., str]


def network(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return mlp(**{**SMALL, **changes})


def recipe(**changes: Any) -> dict[str, Any]:
    facts = {
        "version": 1,
        "model": {"_target_": "autoprune.models.mlp", **SMALL},
        "spec": {"kept": {}, "criterion": "l1", "recovery": "none"},
        "layout": "tensor",
        "inputs": [{"name": "0", "shape": [1, 1, 8, 8], "dtype": "float32"}],
        "history": [],
    }
    return {**facts, **changes}


def artifact(folder: Path, **changes: Any) -> Path:
    """A folder as autoprune writes them."""
    place = folder / "trial" / "model"
    place.mkdir(parents=True)
    (place / RECIPE_FILE).write_text(json.dumps({"recipe": recipe(**changes)}))
    save_file(network().state_dict(), place / WEIGHTS_FILE)
    return place.parent


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Runs a command that is to refuse its input; returns what it said."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*words: str) -> str:
        assert in_time(lambda: main(list(words))) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "root:" not in out + err, "what a link leads to is not shown"
        return str(err)

    return run


@pytest.fixture
def frugal() -> Iterator[None]:
    """The test takes neither much memory nor much time."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < GIB / 2
    assert time.perf_counter() - began < 20


def test_an_artifact_that_is_one_loads(tmp_path: Path) -> None:
    found = autoprune.load(artifact(tmp_path))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(found(x), network().eval()(x))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("name", [RECIPE_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("kind", IN_PLACE_OF_A_FILE)
def test_what_lies_in_an_artifact_in_place_of_a_file_is_refused(
    name: str, kind: str, tmp_path: Path
) -> None:
    folder = artifact(tmp_path)
    (folder / "model" / name).unlink()
    IN_PLACE_OF_A_FILE[kind](folder / "model" / name)
    for asked in (folder, folder / "model"):
        with pytest.raises(AutopruneError, match=REFUSALS):
            in_time(lambda asked=asked: autoprune.load(asked))


def test_an_artifact_behind_a_link_is_refused_unless_the_user_names_it(tmp_path: Path) -> None:
    real = artifact(tmp_path / "real")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model").symlink_to(real / "model")
    with pytest.raises(AutopruneError, match=r"other/model is a symbolic link"):
        autoprune.load(other)
    assert autoprune.load(other / "model")


@pytest.mark.usefixtures("frugal")
def test_weights_are_read_only_where_they_fit(tmp_path: Path) -> None:
    folder = artifact(tmp_path)
    weights = folder / "model" / WEIGHTS_FILE
    with weights.open("wb") as file:
        numbers = {"dtype": "F32", "shape": [GIB], "data_offsets": [0, 4 * GIB]}
        file.write(safetensors_header({"layers.0.weight": numbers}))
        file.truncate(file.tell() + 4 * GIB)
    with pytest.raises(AutopruneError, match="weights do not fit the network"):
        autoprune.load(folder)
    with pytest.raises(AutopruneError, match="is not of this network"):
        load_checkpoint(network(), str(weights))


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}},
        {"a": 3},
        [1, 2],
    ],
)
def test_a_header_that_lies_is_refused(header: Any, tmp_path: Path) -> None:
    folder = artifact(tmp_path)
    (folder / "model" / WEIGHTS_FILE).write_bytes(safetensors_header(header) + bytes(4))
    with pytest.raises(AutopruneError, match=r"not a safetensors file|do not fit"):
        autoprune.load(folder)


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "not valid JSON .*nested too deep"),
        ('{"recipe": ' + DEEP + "}", "nested too deep"),
        (json.dumps({"recipe": recipe(model=json.loads("[" * 90 + "]" * 90))}), "not a dict"),
        (
            json.dumps(
                {"recipe": recipe(inputs=[{"name": "0", "shape": [2**30] * 9, "dtype": "float32"}])}
            ),
            "an example has 268435456 at most",
        ),
    ],
    ids=["deep", "deep inside", "a list", "huge inputs"],
)
def test_a_recipe_without_bounds_is_refused(text: str, message: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path)
    (folder / "model" / RECIPE_FILE).write_text(text)
    with pytest.raises(AutopruneError, match=message):
        in_time(lambda: autoprune.load(folder))


class Touches:
    """What a pickle may hold: something that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def repacked(path: Path, **how: Any) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return packed({name: archive.read(name) for name in archive.namelist()}, **how)


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_checkpoints_that_are_bombs_pickles_or_elsewhere_are_refused(
    suffix: str, tmp_path: Path, say: Say
) -> None:
    torch.save(network().state_dict(), tmp_path / "good.pt")
    load_checkpoint(network(), str(tmp_path / "good.pt"))
    touched = tmp_path / "ran"
    torch.save(Touches(touched), tmp_path / "pickle.pt")
    contents = {
        "bomb": bomb("archive/data/0"),
        "small bomb": repacked(tmp_path / "good.pt", compression=zipfile.ZIP_DEFLATED),
        "overlapping": overlapping("archive/data/", 9),
        "elsewhere": packed({"../../.bashrc": b"x"}),
        "pickle": (tmp_path / "pickle.pt").read_bytes(),
        "bare pickle": pickle.dumps(Touches(touched)),
    }
    for content in contents.values():
        path = tmp_path / f"hostile{suffix}"
        path.write_bytes(content)
        with pytest.raises(AutopruneError, match="hostile"):
            load_checkpoint(network(), str(path))
        assert "hostile" in say("measure", f"candidate={path}", f"baseline={path}", "model=mlp")
    assert not touched.exists()


def test_a_checkpoint_may_hold_an_optimizer_and_must_hold_the_network(tmp_path: Path) -> None:
    path = tmp_path / "with_optimizer.pt"
    torch.save({"state_dict": network().state_dict(), "optimizer": torch.zeros(1000)}, path)
    assert load_checkpoint(network(), str(path)).digest
    torch.save({"layers": torch.zeros(1000)}, path)
    with pytest.raises(AutopruneError, match="is not of this network"):
        load_checkpoint(network(), str(path))


@pytest.mark.parametrize("kind", IN_PLACE_OF_A_FILE)
def test_journals_profiles_and_contests_that_are_none(kind: str, tmp_path: Path, say: Say) -> None:
    sweep = tmp_path / "out" / "sweep"
    sweep.mkdir(parents=True)
    for name in (JOURNAL_FILE, PROFILE_FILE, RANKING_FILE, CONTEST_FILE):
        IN_PLACE_OF_A_FILE[kind](sweep / name)
    if kind != "a link to nothing":
        for which in ("sweep", "latest"):
            assert JOURNAL_FILE in say("status", f"output={sweep.parent}", f"sweep={which}")
        assert "sweep" in say("compare", f"output={sweep.parent}", "resume=sweep")
    with pytest.raises(AutopruneError, match=r"compare\.json|no contest"):
        in_time(lambda: read_contest(sweep))
    if kind in ("two terabytes", "a link to somebody's file"):
        with pytest.raises(AutopruneError, match=r"profile\.json (is|has)"):
            in_time(lambda: read_profile(sweep / PROFILE_FILE, without="it goes on"))
        with pytest.raises(AutopruneError, match=r"ranking\.json (is|has)"):
            in_time(lambda: read_ranking(sweep / RANKING_FILE))


HEADER = {"event": "header", "version": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (DEEP.encode(), "line 1: it is not JSON"),
        (b'{"a":' + DEEP.encode() + b"}", "line 1: it is not JSON"),
        (b" " * (MAX_LINE + 2), "line 1: it has more than"),
        (encode({**HEADER, "facts": {}})[:-1], "the journal's header does not say what"),
        (encode({**HEADER, "facts": {"goal": {"objectives": 3}}})[:-1], "does not say what"),
    ],
    ids=["deep", "deep inside", "long", "empty", "nonsense"],
)
def test_a_journal_as_nobody_writes_it(line: bytes, message: str, tmp_path: Path, say: Say) -> None:
    sweep = tmp_path / "out" / "sweep"
    sweep.mkdir(parents=True)
    (sweep / JOURNAL_FILE).write_bytes(line + b"\n")
    assert message in say("status", f"output={sweep.parent}", "sweep=sweep")


def test_a_name_does_not_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view, command = make_sweep(3), "\x1b]0;owned\x07\x9b2J[link=file:///etc]x[/link]"
    sweep = tmp_path / "out" / "sweep"
    sweep.mkdir(parents=True)
    header = {
        "sweep_id": command,
        "experiment": command,
        "goal": view.goal.to_json(),
        "space": view.space.to_json(),
        "baseline": dict(view.baseline),
        "budget": {"trials": 3},
        "slots": 1,
        "output": command,
        "config": None,
    }
    with Journal.create(sweep / JOURNAL_FILE, header) as journal:
        for observation in view.observations:
            journal.append_asked(observation.trial)
            journal.append_told(replace(observation, host=command))
    assert main(["status", f"output={sweep.parent}", "sweep=sweep"]) == 0
    out, err = capsys.readouterr()
    assert "]0;owned" in out
    assert "[link=file:///etc]x[/link]" in out
    assert not {"\x1b", "\x07", "\x9b"} & {*out, *err}


def test_measure_names_what_it_refuses(tmp_path: Path, say: Say) -> None:
    folder = artifact(tmp_path)
    (folder / "model" / WEIGHTS_FILE).unlink()
    (folder / "model" / WEIGHTS_FILE).symlink_to("/etc/passwd")
    assert "is a symbolic link" in say("measure", f"candidate={folder}", f"baseline={folder}")
    link = tmp_path / "link"
    link.mkdir()
    (link / "data").symlink_to("/etc")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "model.pt2").write_bytes(b"x")
    (link / "data").unlink()
    (link / "data").symlink_to(tmp_path / "real")
    assert "data is a symbolic link" in say("measure", f"candidate={link}", f"baseline={link}")
