"""`autoprune compare`: contests of searchers, on sweeps that take seconds."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient

from autoprune.cli import main
from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Measurement, Observation
from autoprune.measurement.meter import PairedMeter
from autoprune.orchestration.contest.again import timed_again
from autoprune.orchestration.contest.contest import ContestRequest, Entrant, run_contest
from autoprune.orchestration.contest.records import Contest, Entry, find_contest, read_contest
from autoprune.orchestration.executors.inline import InlineExecutor
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.launch import Listeners
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.reports.contest_page import contest_html
from autoprune.orchestration.request import BaselineRequest, GoalRequest
from autoprune.orchestration.sweep import Budget, Sweep
from autoprune.orchestration.view import SweepView, view_of
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.searchers import OptunaSearcher, RandomSearcher, UniformSearcher
from autoprune.settings.compose import compose_config, plain
from autoprune.settings.contests import build_contest
from tests.tiny import request

WORDS = [
    *("experiment=digits_mlp", "recovery=none", "meter.max_s=0.1", "baseline.fit.epochs=1"),
    *("executor=inline", "budget.trials=4", "uniform_first=[0.5]", "meter.gate=false"),
]


class Reads(RandomSearcher):
    """One that takes a profile."""

    seen: list[Any] = []  # noqa: RUF012  # of all of them

    def __init__(self, space: Any, goal: Any, seed: int, *, profile: Any = None) -> None:
        super().__init__(space, goal, seed)
        self.seen.append(profile)


class Slow(RandomSearcher):
    warm_up = 9


ENTRANTS = {
    "uniform": Entrant(UniformSearcher),
    "random": Entrant(RandomSearcher),
    "nsga2": Entrant(OptunaSearcher),
}


def asked(
    output: Path, entrants: dict[str, Entrant] | None = None, **changes: Any
) -> ContestRequest:
    facts = {"budget": Budget(trials=4), "executor": InlineExecutor(), **changes}
    facts.setdefault("recoveries", {"none": Recovery(FitPlan(epochs=0))})
    return ContestRequest(request(output, **facts), entrants or ENTRANTS, seeds=(0, 1))


def test_all_run_with_every_seed_from_one_baseline(tmp_path: Path) -> None:
    heard: list[Contest] = []
    contest, folder = run_contest(asked(tmp_path), on_entry=heard.append)
    assert contest.complete
    assert len(heard) == 6
    order = [(e.course.seed, e.course.searcher) for e in contest.entries]
    assert order == [(seed, name) for seed in (0, 1) for name in ENTRANTS]
    assert read_contest(folder) == contest
    goals, specs = set(), {}
    for entry in contest.entries:
        record = read_journal(folder / entry.folder / "journal.jsonl")
        view = view_of(record)
        goals.add(json.dumps(record.header["goal"], sort_keys=True))
        assert entry.course.final == view.hypervolume
        assert len(entry.course.hypervolume_T) == len(view.observations) == 4
        seconds = [moment.seconds for moment in entry.course.moments]
        assert seconds == sorted(seconds)
        assert entry.course.moments[-1].busy == pytest.approx(view.busy_s)
        members = [m.outcome for m in view.front.members if isinstance(m.outcome, Measurement)]
        assert list(entry.front) == [contest.goal.values(member) for member in members]
        specs[entry.course.searcher, entry.course.seed] = [o.trial.spec for o in view.observations]
    assert len(goals) == 1
    assert specs["uniform", 0] == specs["uniform", 1], "a grid has no seed"
    assert specs["random", 0] != specs["random", 1]
    assert specs["random", 0][0] == specs["nsga2", 1][0], "equal ratios come first for all"
    facts = json.loads((folder / "compare.json").read_text())
    for name in ENTRANTS:
        assert set(facts["searchers"][name]) == {
            *("hypervolume", "told", "mean", "ci95", "trials_to_random_final")
        }
        assert len(facts["searchers"][name]["hypervolume"]) == 2
    page = contest_html(contest)
    assert contest.standings is not None
    assert contest.standings.statement.split(";")[0] in page


def test_a_contest_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, wanted = run_contest(asked(tmp_path / "whole")), asked(tmp_path / "broken")
    ended: list[Contest] = []

    def stop(contest: Contest) -> None:
        ended.append(contest)
        if len(ended) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_contest(wanted, on_entry=stop)
    folder = find_contest(tmp_path / "broken", "latest")
    assert len(read_contest(folder).entries) == 3
    # the next search breaks off in its midst
    appended = Journal.append_told
    calls = []

    def full(self: Journal, observation: Any) -> Any:
        calls.append(observation)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return appended(self, observation)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append_told", full)
        with pytest.raises(KeyboardInterrupt):
            run_contest(wanted, folder=folder)
    contest, again = run_contest(wanted, folder=folder)
    assert again == folder
    assert contest.complete
    assert contest.entries[:3] == ended[-1].entries, "what had ended is not run again"
    assert len(list(folder.glob("*/seed-*"))) == 6, "what had begun went on"

    def proposed(folder: Path, entry: Entry) -> list[PruningSpec]:
        view = view_of(read_journal(folder / entry.folder / "journal.jsonl"))
        return [observation.trial.spec for observation in view.observations]

    for entry, other in zip(contest.entries, whole[0].entries, strict=True):
        if entry.course.searcher != "nsga2":  # which goes by what was measured
            assert proposed(folder, entry) == proposed(whole[1], other)


BY_SPEED = {"goal": GoalRequest(("main", "speedup")), "budget": Budget(trials=2)}


def test_at_the_end_the_fronts_are_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    entrants = {"random": Entrant(RandomSearcher), "nsga2": Entrant(OptunaSearcher)}
    wanted = asked(tmp_path, entrants, **BY_SPEED)
    measured = []
    measure = PairedMeter.measure

    def count(meter: PairedMeter, candidate: Any, baseline: Any, example: Any) -> Any:
        measured.append(sum(p.numel() for p in candidate.parameters()))
        return replace(measure(meter, candidate, baseline, example), ratio=3.0, low=3.0, high=3.0)

    with monkeypatch.context() as patch:
        patch.setattr(
            "autoprune.orchestration.contest.contest.timed_again",
            lambda *parts, report: (
                patch.setattr(PairedMeter, "measure", count) or timed_again(*parts, report=report)
            ),
        )
        contest, folder = run_contest(wanted, on_timed=lambda *done: told.append(done))
    assert contest.timed_again
    specs = set()
    for entry in contest.entries:
        view = view_of(read_journal(folder / entry.folder / "journal.jsonl"))
        specs |= {member.trial.spec for member in view.front.members}
        assert all(speedup == 3.0 for _, speedup in entry.front_again)
        best = max(accuracy for accuracy, _ in entry.front)
        assert entry.course.again == pytest.approx(max(best - contest.goal.reference[0], 0.0) * 2)
    assert len(measured) == len(specs), "what is cut alike is measured once"
    assert told == [(done, len(specs)) for done in range(1, len(specs) + 1)]
    assert contest.standings is not None
    for standing in contest.standings.standings:
        courses = [entry.course for entry in contest.of(standing.searcher)]
        assert standing.hypervolume == tuple(course.again for course in courses)
        assert standing.told == tuple(course.final for course in courses)
    assert "timed again, one after the other" in contest_html(contest)
    assert read_contest(folder) == contest


def test_fronts_that_cannot_be_timed_again_count_as_told(tmp_path: Path) -> None:
    entrants = {"random": Entrant(RandomSearcher), "nsga2": Entrant(OptunaSearcher)}

    def lose(_: Contest) -> None:
        (folder,) = tmp_path.glob("*compare*")
        for place in folder.glob("*/*/trials/*"):
            shutil.rmtree(place)

    contest, _ = run_contest(asked(tmp_path, entrants, **BY_SPEED), on_entry=lose)
    assert contest.complete
    assert not contest.timed_again
    assert "trials" in contest.untimed
    assert contest.standings is not None
    for standing in contest.standings.standings:
        assert standing.hypervolume == standing.told


def test_the_profile_is_for_those_who_read_it(tmp_path: Path) -> None:
    Reads.seen.clear()
    entrants = {"reads": Entrant(Reads, profile=True), "does not": Entrant(Reads)}
    contest, folder = run_contest(asked(tmp_path, entrants, budget=Budget(trials=1)))
    profiles = [seen for seen in Reads.seen if seen is not None]
    assert len(profiles) == 2
    assert profiles[0].points
    assert (folder / "profile.json").is_file()
    assert contest.profile_s > 0
    for entry in contest.entries:
        begins = entry.course.moments[0].seconds
        assert (begins >= contest.profile_s) == (entry.course.searcher == "reads")


def test_ctrl_c_in_the_last_trial_of_a_search_ends_the_contest(tmp_path: Path) -> None:
    done: list[Observation] = []

    class Counts:
        def on_observation(self, observation: Observation, view: SweepView) -> None:
            done.append(observation)
            if len(done) == 4:
                signal.raise_signal(signal.SIGINT)

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    listeners = Listeners(watchers=(Counts(),))  # type: ignore[arg-type]
    contest, folder = run_contest(asked(tmp_path), listeners=listeners)
    assert not contest.complete
    assert len(contest.entries) == 1, "the search that was complete counts"
    assert read_contest(folder) == contest


def test_a_ladders_doubts_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweep, "doubts", ("the rung at 0 epochs lies",))
    contest, _ = run_contest(asked(tmp_path, budget=Budget(trials=1)))
    assert {entry.warnings for entry in contest.entries} == {("the rung at 0 epochs lies",)}


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"searchers names \['random'\]; name two or more"):
        asked(tmp_path, {"random": Entrant(RandomSearcher)})
    slow = asked(tmp_path, {"slow": Entrant(Slow), "random": Entrant(RandomSearcher)})
    with pytest.raises(ValueError, match=r"budget.trials is 4, and the first 9 trials of this sea"):
        run_contest(slow)
    assert not list(tmp_path.glob("*compare*"))
    _, folder = run_contest(asked(tmp_path, budget=Budget(trials=1)))
    assert not list((tmp_path / "baselines").glob("*")), "nothing was trained for it"
    other = asked(
        tmp_path, recoveries={"none": Recovery(FitPlan(epochs=1))}, budget=Budget(trials=1)
    )
    with pytest.raises(ValueError, match=r"conditions was .*; go on with what it began with"):
        run_contest(other, folder=folder)
    retrained = asked(
        tmp_path, baseline=BaselineRequest(plan=FitPlan(epochs=2)), budget=Budget(trials=1)
    )
    with pytest.raises(ValueError, match=r"weights are not those that this contest began with"):
        run_contest(retrained, folder=folder)
    aims = asked(tmp_path, goal=GoalRequest(("main", "size_mb")), budget=Budget(trials=1))
    with pytest.raises(ValueError, match=r"goal was .*min params and is .*min size_mb"):
        run_contest(aims, folder=folder)
    with pytest.raises(ValueError, match=r"budget was .*; go on with what it began with"):
        run_contest(asked(tmp_path, budget=Budget(trials=2)), folder=folder)
    with pytest.raises(ValueError, match=r"no contest 'x' in .*; the latest are tiny-compare-"):
        find_contest(tmp_path, "x")
    (folder / "compare.json").write_text("{}")
    with pytest.raises(ValueError, match=r"compare.json is not as it was written"):
        read_contest(folder)
    with pytest.raises(ValueError, match="no contest at"):
        read_contest(tmp_path / "nowhere")


def test_a_budget_that_no_searcher_can_use_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    listeners = Listeners(on_prepared=lambda prepared: told.extend(prepared.warnings))
    few = asked(tmp_path, budget=Budget(trials=1))
    run_contest(few, listeners=listeners)
    assert all(line.startswith("budget.trials is 1, and the first ") for line in told)
    assert len(told) == 2
    assert "and the first 10 trials of nsga2 build on no outcome (1 of them are" in told[1]


def test_a_damaged_profile_is_said(tmp_path: Path) -> None:
    wanted = asked(tmp_path, {**ENTRANTS, "reads": Entrant(Reads, profile=True)})
    begun: list[Path] = []

    def stop(folder: Path) -> None:
        begun.append(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_contest(wanted, on_start=stop)
    (begun[0] / "profile.json").write_text("{")
    with pytest.raises(ValueError, match=r"profile.json is damaged .* delete it: the network is"):
        run_contest(wanted, folder=begun[0])


MINE = "_target_: autoprune.searchers.{}\n"


def test_a_contest_goes_on_with_the_searchers_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    option = tmp_path / "conf" / "searcher" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(MINE.format("RandomSearcher"))
    words = [*WORDS, "--config-dir", str(tmp_path / "conf"), "searchers=[mine,uniform]", "seeds=1"]
    words += [f"output={tmp_path}/out", "tracking=none"]

    full = Mock(side_effect=AutopruneError("the disk is full"))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append_told", full)
        assert main(["compare", *words]) == 1
    assert "once that is mended, `autoprune compare resume=digits_mlp-c" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append_told", Mock(side_effect=KeyboardInterrupt))
        assert main(["compare", "resume=latest", f"output={tmp_path}/out"]) == 130
    assert "ended at once; `autoprune compare resume=digits_mlp-c" in capsys.readouterr().err
    option.write_text(MINE.format("NoSuchSearcher"))
    assert main(["compare", "resume=latest", f"output={tmp_path}/out"]) == 0
    (folder,) = tmp_path.glob("out/*compare*")
    (journal,) = folder.glob("mine/*/journal.jsonl")
    target = read_journal(journal).header["config"]["searcher"]["_target_"]
    assert target == "autoprune.searchers.RandomSearcher"
    (folder / "config.json").write_text("{")
    assert main(["compare", "resume=latest", f"output={tmp_path}/out"]) == 2
    assert "config.json is not as it was written" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert main(["compare", "resume=latest", f"output={tmp_path}/out"]) == 2
    assert "was started from Python, where its model and task are; go on" in capsys.readouterr().err


def test_a_profile_by_the_command() -> None:
    words = [*WORDS, "profile=true", "searchers=[random,frontier]"]
    entrants = build_contest(plain(compose_config("compare", words))).entrants
    assert {name: entrant.profile for name, entrant in entrants.items()} == {
        "random": False,
        "frontier": True,
    }


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *WORDS, "searchers=[random,uniform]", "seeds=2"]) == 0
    out = capsys.readouterr().out
    assert "random       seed 0  hypervolume" in out
    assert "(4 of 4)" in out
    assert "has the largest mean hypervolume" in out
    (folder,) = tmp_path.glob("outputs/*compare*")
    contest = read_contest(folder)
    assert (folder / "compare.html").stat().st_size > 1e6

    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("digits_mlp")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 5
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert contest.standings is not None
    assert parent.data.tags["winner"] == contest.standings.standings[0].searcher
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {
        *("compare.json", "compare.html")
    }
    for run in runs:
        if run is not parent:
            history = client.get_metric_history(run.info.run_id, "hypervolume")
            name, seed = run.data.params["searcher"], int(run.data.params["seed"])
            entry = contest.entry(name, seed)
            assert entry is not None
            assert [m.value for m in history] == pytest.approx(list(entry.course.hypervolume_T))

    # what a user hands to a class of theirs stays where nobody else may read it
    config = folder / "config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    assert "mlflow.db" not in (folder / "compare.json").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["compare", "resume=yesterday"]) == 2
    assert "no contest 'yesterday' in" in capsys.readouterr().err
    assert main(["compare", "resume=latest", f"output={tmp_path}/outputs", "--json"]) == 0
    assert not (elsewhere / "outputs").exists(), "results go where those of before are"
    assert json.loads(capsys.readouterr().out)["contest"]["seeds"] == [0, 1]
    assert len(client.search_runs([experiment.experiment_id])) == 5, "nothing is written twice"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["searchers=[random,nsga]"], "searchers: there is no 'nsga'; did you mean 'nsga"),
        (["searchers=[tpe,random,tpe]"], "searchers names tpe more than once; name each once"),
        (["searchers=[tpe]"], "searchers is ['tpe']; name two or more to compare"),
        (["searcher=tpe"], "searcher: a contest has several; name options of that group in"),
        (["searcher.sampler=tpe"], "searcher: a contest has several"),
        (["seeds=0"], "seeds is 0; choose 1 or more"),
        (["resume=latest"], "leave out baseline.fit.epochs, budget.trials, executor"),
    ],
)
def test_bad_input(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", *WORDS, f"output={tmp_path}", *words]) == 2
    assert message in capsys.readouterr().err
