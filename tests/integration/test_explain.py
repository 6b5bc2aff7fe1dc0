"""`autoprune explain` as a user types it: a network's groups, and what a front cut."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from autoprune.cli import main
from autoprune.domain.errors import AutopruneError
from autoprune.models import vit
from autoprune.orchestration.artifacts import MODEL_FOLDER, RECIPE_FILE
from autoprune.orchestration.folders import JOURNAL_FILE, trial_folder
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.request import SpaceRequest
from autoprune.orchestration.understanding.front import explain_front
from autoprune.orchestration.view import view_of
from autoprune.settings.compose import compose_config, plain
from autoprune.settings.schema import ExplainConfig, SweepConfig
from tests.sweeps import make_sweep
from tests.tiny import WORDS, request

WORDS = (*WORDS, "executor=inline", "tracking=none", "name=own", "meter.max_s=0.05")
VIT = (
    *("model=vit", "model.width=32", "model.depth=3", "model.image_side=8", "data.side=8"),
    *("baseline.fit.epochs=1", "recovery.fit.epochs=0", "meter.max_s=0.05", "meter.gate=false"),
    *("executor=inline", "tracking=none", "space=structures", "budget.trials=4", "name=own"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["explain", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_groups_as_text_as_a_page_and_as_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, *WORDS)
    assert "Groups of own" in out
    assert "hidden.0  made by hidden.0; read by hidden.2" in out
    assert "not pruned  head: its units are part of the network's output" in out
    assert "time        not known without a profile: set profile=true" in out
    assert "neurons     outputs of a linear layer" in out
    (place,) = (folder / "outputs").iterdir()
    assert place.name.startswith("own-explain-")
    assert f"a picture of it: {place.resolve() / 'explain.html'}" in out
    found = json.loads((place / "explain.json").read_text())
    assert found["layers"] == ["hidden.0", "hidden.2", "head"]
    assert [group["name"] for group in found["groups"]] == ["hidden.0", "hidden.2"]
    assert found["groups"][0]["params"] == 32 * 65 + 32 * 32
    assert found["groups"][0]["reads"] == ["hidden.2"]
    assert found["groups"][0]["time_share"] is None
    page = (place / "explain.html").read_text()
    assert "own: what must be pruned together" in page
    assert "://" not in page.replace(get_plotlyjs(), "")


@pytest.mark.usefixtures("folder")
def test_a_profile_tells_shares_of_time_and_is_found_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = json.loads(run(capsys, *WORDS, "profile=true", "--json"))
    assert found["metric"] == "accuracy"
    for group in found["groups"]:
        assert 0.0 <= group["time_share"] <= 1.0
        assert group["alone"]["kept"] == 16
        assert "accuracy" in group["alone"]["metrics"]
    out = run(capsys, *WORDS)
    assert "baseline epoch" not in out
    assert "[" not in out.partition("Groups")[0], "what was measured is not measured again"
    shown = found["groups"][0]["alone"]["metrics"]["accuracy"] - found["baseline"]
    assert f"{shown:+.4f} at 16" in out
    assert "by the latency model of the profile" in out
    assert "not known without a profile" not in out
    assert "warning     unconverged baseline: too few epochs to tell whether it had conver" in out
    # of other weights nothing is known
    out = run(capsys, *WORDS, "baseline.fit.epochs=1")
    assert "not known without a profile" in out


def test_what_a_front_cut_is_told_by_name_without_data(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sweep", *VIT]) == 0
    capsys.readouterr()
    monkeypatch.setattr("autoprune.data.digits", None)
    out = run(capsys, "sweep=latest")
    (place,) = (path for path in (folder / "outputs").iterdir() if path.name.startswith("own-"))
    assert f"What the front of {place.name} keeps" in out
    found = json.loads((place / "explain.json").read_text())
    assert found["unnamed"] == []
    kinds = {group["name"]: group["kind"] for group in found["groups"]}
    named = [name for name, kind in kinds.items() if kind in ("heads", "blocks")]
    assert named
    for member in found["front"]:
        assert sorted(member["survivors"]) == sorted(named)
        blocks = member["survivors"]["blocks.0:blocks"]
        assert len(blocks["left"]) == member["kept"]["blocks.0:blocks"]
        assert set(blocks["left"]) | set(blocks["gone"]) == {f"blocks.{n}" for n in range(3)}
        for name in named:
            survivors, gone = member["survivors"][name], blocks["gone"]
            inside = any(name.startswith(f"{block}.") for block in gone)
            assert len(survivors["left"]) == (0 if inside else member["kept"][name])
        for name in kinds:
            around = [block for block in blocks["gone"] if name.startswith(f"{block}.")]
            assert member["went_with"].get(name, []) == around
    assert any(member["survivors"]["blocks.0:blocks"]["gone"] for member in found["front"])
    assert "blocks.0:blocks: " in out
    assert " gone, " in out
    taken = [(m["trial"], *pair) for m in found["front"] for pair in m["went_with"].items()]
    assert taken
    for number, name, (block,) in taken:
        assert f"{f'trial {number}':<10} {name}: gone with {block}\n" in out
    assert out.count(" gone \u2502") == len(taken)
    assert "nothing left" not in out
    page = (place / "explain.html").read_text()
    assert f"{place.name}: what the front cut" in page
    assert json.loads(run(capsys, "sweep=latest", "--json")) == found
    number = found["front"][0]["trial"]
    recipe = trial_folder(place.resolve(), number) / MODEL_FOLDER / RECIPE_FILE
    recipe.unlink()
    out = run(capsys, f"sweep={place.name}")
    assert f"{RECIPE_FILE} is missing, so the units of trial {number} are not named" in out
    shutil.rmtree(place / "trials")
    out = run(capsys, f"sweep={place.name}")
    assert f"its network was not kept, so the units of trial {number} are not named" in out


def test_a_front_of_channels_and_neurons_needs_no_network(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *WORDS, "budget.trials=3"]) == 0
    capsys.readouterr()
    (place,) = (path for path in (folder / "outputs").iterdir() if path.name.startswith("own-"))
    shutil.rmtree(place / "trials")
    front = view_of(read_journal(place / JOURNAL_FILE)).front.members
    out = run(capsys, "sweep=latest")
    assert "hidden.0" in out
    for member in front:
        kept = member.trial.spec.widths["hidden.0"]
        assert f"{kept} ({kept / 32:.0%})" in out
    assert "warning" not in out


def test_why_units_are_not_named(tmp_path: Path) -> None:
    asked = request(
        tmp_path,
        model=vit(width=32, depth=2, in_channels=1, num_classes=4, image_side=4, patch=2),
        space=SpaceRequest(kinds=("heads", "blocks")),
    )
    result = launch(asked, Tracking()).result
    found = explain_front(result.view, result.folder, asked.model)
    assert found.unnamed == ()
    assert all(member.survivors for member in found.members)
    unknown = explain_front(result.view, result.folder, "it is nowhere")
    assert unknown.unnamed == ("units are not named: it is nowhere",)
    assert not any(member.survivors for member in unknown.members)
    late = explain_front(result.view, result.folder, asked.model, time_limit_s=1e-9)
    (line,) = late.unnamed
    assert line.startswith("units are not named: the dependency graph of ViT was not built within")


def test_a_sweep_from_python_has_its_network_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = vit(width=32, depth=2, in_channels=1, num_classes=4, image_side=4, patch=2)
    asked = request(tmp_path, model=net, space=SpaceRequest(kinds=("heads",)))
    launch(asked, Tracking())
    out = run(capsys, "sweep=latest", f"output={tmp_path}")
    assert "warning    units are not named: the sweep was started from Python, where its" in out
    assert "blocks.0.attention" in out


def test_a_network_that_is_there_no_more(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "own_net.py").write_text("from autoprune.models import vit\n")
    assert main(["sweep", *VIT, "model._target_=own_net.vit", "budget.trials=1"]) == 0
    (folder / "own_net.py").unlink()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    del sys.modules["own_net"]
    capsys.readouterr()
    out = run(capsys, "sweep=latest")
    assert "warning    units are not named: model._target_ 'own_net.vit' cannot be imported" in out


def test_an_empty_front_is_refused(tmp_path: Path) -> None:
    empty = replace(make_sweep(0), sweep_id="mine")
    with pytest.raises(AutopruneError, match="the front of mine is empty; `autoprune status sweep"):
        explain_front(empty, tmp_path, "no network")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=latest"], "no sweep in "),
        (["sweep=latest", "model=vgg"], "sweep=latest explains a sweep as it was; leave out model"),
        (["model.image_side=9"], "fails on the example input"),
        (["output=/proc/here"], "cannot write to the output folder /proc/here"),
        (["space.kinds=[chanels]"], "'chanels'"),
    ],
)
def test_faults(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [] if "sweep=latest" in words else [*WORDS]
    assert main(["explain", *own, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_it_takes_what_a_sweep_takes() -> None:
    def composed(command: str) -> dict[str, Any]:
        return plain(compose_config(command, ["experiment=digits_vit", "meter=onnxruntime"]))

    explain, sweep = composed("explain"), composed("sweep")
    own = set(ExplainConfig.__dataclass_fields__) - set(SweepConfig.__dataclass_fields__)
    assert set(explain) - set(sweep) == own == {"sweep"}
    assert {key: explain[key] for key in sweep} == sweep
