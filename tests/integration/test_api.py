"""`autoprune.search` and what it returns, on sweeps that take seconds."""

import copy
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table
from torch import nn

import autoprune
from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Constraint, Goal
from autoprune.domain.protocols import Searcher
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation
from autoprune.measurement.runtimes import OnnxRuntime
from autoprune.orchestration.reports.live import (
    LiveFront,
    NotebookDrawing,
    TerminalDrawing,
    live_watcher,
)
from autoprune.orchestration.request import SweepRequest
from autoprune.pruning.criteria import Hessian
from autoprune.pruning.criteria.weights import Lamp
from autoprune.settings.build import build_request
from autoprune.settings.compose import compose_config, plain
from autoprune.settings.options import DEFAULTS, Options
from tests.pruning_tasks import Blobs, small_net
from tests.sweeps import make_sweep

FAST = autoprune.FitPlan(epochs=1)


def searched(output: Path, model: nn.Module, **changes: Any) -> autoprune.Front:
    options: dict[str, Any] = {
        "searcher": "random",
        "trials": 4,
        "inline": True,
        "tracking": None,
        "recovery": FAST,
        "measure_s": 0.05,
        "objectives": ("main", "params"),
        "output": output,
        **changes,
    }
    return autoprune.search(model, Blobs(), **options)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = small_net(dropout=0.0)
    history = autoprune.train(model, Blobs(), autoprune.FitPlan(epochs=12, lr=0.05))
    assert len(history) == 12
    assert history[-1] > 0.9
    return model


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, trained: nn.Module) -> autoprune.Front:
    return searched(tmp_path_factory.mktemp("api"), trained)


def asked(monkeypatch: pytest.MonkeyPatch, **options: Any) -> SweepRequest:
    """What a search with `options` asks for; nothing is started."""
    found: list[SweepRequest] = []

    class Enough(Exception):  # noqa: N818
        pass

    def launch(request: SweepRequest, *_: Any, **__: Any) -> None:
        found.append(request)
        raise Enough

    monkeypatch.setattr("autoprune.api.launch", launch)
    with pytest.raises(Enough):
        autoprune.search(small_net(), Blobs(), **options)
    return found[0]


def test_what_is_left_out_is_what_the_command_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    own, command = asked(monkeypatch), build_request(plain(compose_config("sweep", [])))
    same = ("budget", "space", "limits", "recoveries", "meter", "gate", "device", "threads", "seed")
    for name in same:
        assert getattr(own, name) == getattr(command, name), name
    assert tuple(own.goal.metrics) == tuple(command.goal.metrics)
    assert list(own.criteria) == list(command.criteria)
    assert tuple(own.uniform_first) == tuple(command.uniform_first)
    assert own.ladder == command.ladder
    assert own.executor.slots == command.executor.slots


def test_a_criterion_may_be_a_name_or_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = Hessian(probes=2)
    assert asked(monkeypatch, criterion=fewer).criteria == {"hessian": fewer}
    assert asked(monkeypatch, criterion="lamp").criteria == {"lamp": Lamp()}


def test_recovery_has_the_same_name_at_both_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = autoprune.FitPlan(epochs=0)
    command = build_request(plain(compose_config("sweep", ["recovery=none"])))
    assert asked(monkeypatch, recovery=idle).recoveries == {"none": autoprune.Recovery(idle)}
    assert list(command.recoveries) == ["none"]
    assert list(asked(monkeypatch).recoveries) == ["finetune"]
    taught = autoprune.Recovery(FAST, distillation=autoprune.Distillation())
    assert asked(monkeypatch, recovery=taught).recoveries == {"distill": taught}
    words = ["recovery=reconstruct_finetune", "recovery.distillation.weight=0.7"]
    command = build_request(plain(compose_config("sweep", words)))
    both = autoprune.Recovery(
        autoprune.FitPlan(epochs=8),
        reconstruction=autoprune.Reconstruction(),
        distillation=autoprune.Distillation(),
    )
    assert command.recoveries == {"reconstruct_distill": both}
    assert asked(monkeypatch, recovery=both).recoveries == command.recoveries


def test_a_recovery_may_have_rounds_and_rewind(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = autoprune.Recovery(autoprune.FitPlan(epochs=8), schedule=autoprune.Schedule(4))
    command = build_request(plain(compose_config("sweep", ["recovery=iterative"])))
    assert asked(monkeypatch, recovery=rounds).recoveries == command.recoveries
    back = autoprune.Recovery(FAST, schedule=autoprune.Schedule(rewind=True))
    with pytest.raises(AutopruneError, match="none are given; pass early=, the network as it was"):
        autoprune.search(small_net(), Blobs(), recovery=back)
    early = small_net(seed=5)
    assert asked(monkeypatch, recovery=back, early=early).baseline.early is early


def test_the_front_is_a_table_a_list_and_a_line(front: autoprune.Front) -> None:
    assert isinstance(front.table, pd.DataFrame)
    assert len(front.table) == len(front) == len(front.members) > 0
    assert list(front.table.index) == [member.number for member in front.members]
    assert {"accuracy", "speedup", "speedup_low", "speedup_high", "widths"} <= {*front.table}
    assert front.table["accuracy"].is_monotonic_decreasing
    assert front.view.sweep_id in repr(front)
    assert "accuracy" in repr(front)
    html = front._repr_html_()
    assert html.startswith("<table")
    assert "accuracy" in html
    assert "widths" not in html


def test_the_best_is_loaded_with_the_outputs_it_had(
    front: autoprune.Front, trained: nn.Module
) -> None:
    member = front.best(max_drop=1.0)
    network = member.load()
    assert not network.training
    spec = member.spec.widths
    assert network[0].out_channels == spec["0"]  # type: ignore[index]
    example = Blobs().example()
    again = autoprune.load(member.folder, model=trained)
    assert torch.equal(network(example), again(example))
    assert torch.equal(network(example), autoprune.load(member.folder, model=small_net)(example))
    history = autoprune.train(network, Blobs(), FAST)
    assert len(history) == 1


def test_the_best_follows_the_rules_of_promotion(front: autoprune.Front) -> None:
    assert front.best(max_drop=1.0).metrics["speedup_low"] == front.table["speedup_low"].max()
    assert front.best(min_speedup=0.0).number == front.members[0].number
    assert front.best(trial=front.members[-1].number) == front.members[-1]
    assert front.best().number in front.table.index
    with pytest.raises(AutopruneError, match=r"no member .* fits; it offers"):
        front.best(min_speedup=1000.0)


def test_a_network_that_was_not_kept_is_said(tmp_path: Path, trained: nn.Module) -> None:
    found = searched(tmp_path, trained, searcher="uniform", trials=4)
    (off, *_) = {o.trial.number for o in found.view.observations} - {*found.table.index}
    with pytest.raises(AutopruneError, match=rf"network of trial {off} was not kept; choose a mem"):
        found.best(trial=off)


def test_a_member_is_promoted_from_python(
    tmp_path: Path, sqlite_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # so wide that half of it is faster beyond what a busy machine can hide: the proof measures
    layers = (nn.Linear(16, 1536), nn.ReLU(), nn.Linear(1536, 1536), nn.ReLU())
    wide = nn.Sequential(nn.Flatten(), *layers, nn.Linear(1536, 4))
    autoprune.train(wide, Blobs(), autoprune.FitPlan(epochs=2, lr=0.01))
    options = {"searcher": "uniform", "trials": 2, "tracking": sqlite_uri, "name": "blobs"}
    found = searched(tmp_path / "out", wide, **options)
    registered = found.promote(max_drop=1.0)
    assert (registered.name, registered.version) == ("blobs", "1")
    assert registered.verdict.wins
    client = MlflowClient(sqlite_uri, sqlite_uri)
    version = client.get_model_version_by_alias("blobs", "champion")
    chosen = found.best(max_drop=1.0).number
    assert version.tags["autoprune.trial"] == str(chosen)
    assert "registered blobs version 1: champion" in capsys.readouterr().out


def test_a_sweep_without_mlflow_cannot_be_promoted(front: autoprune.Front) -> None:
    with pytest.raises(AutopruneError, match="was not tracked, so it has no runs to register from"):
        front.promote(max_drop=1.0)


def test_a_sweep_goes_on_under_the_conditions_it_began_with(
    tmp_path: Path, trained: nn.Module
) -> None:
    searched(tmp_path, trained, trials=1)
    with pytest.raises(AutopruneError, match=r"would not compare .*: recoveries was .*epochs=1"):
        searched(tmp_path, trained, resume="latest", recovery=autoprune.FitPlan(epochs=2))
    with pytest.raises(
        AutopruneError, match=r"the goal was .*min params and is .*min size_mb; resu"
    ):
        searched(tmp_path, trained, resume="latest", objectives=("main", "size_mb"))
    assert len(searched(tmp_path, trained, resume="latest", trials=2).view.observations) == 2


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = small_net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    searched(tmp_path, model, trials=2)
    assert model.training
    assert model[0].out_channels == 8
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Halves:
    """A searcher of the user's own: always half."""

    def __init__(self, space: SearchSpace, goal: Goal, seed: int) -> None:
        self.space, self.told = space, 0

    def ask(self, number: int) -> PruningSpec:
        return self.space.uniform(0.5)

    def tell(self, observation: Observation) -> None:
        self.told += 1


def test_a_searcher_of_ones_own(tmp_path: Path, trained: nn.Module) -> None:
    made: list[Halves] = []

    def halves(space: SearchSpace, goal: Goal, seed: int) -> Searcher:
        made.append(Halves(space, goal, seed))
        return made[-1]

    front = searched(tmp_path, trained, searcher=halves, trials=3, uniform_first=())
    assert made[-1].told == 3
    assert {o.trial.spec for o in front.view.observations} == {made[-1].space.uniform(0.5)}
    assert len(front) == 1


def test_trials_that_save_elsewhere_leave_the_front_at_home(
    tmp_path: Path, trained: nn.Module
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    front = searched(tmp_path / "out", trained, storage=store)
    assert len(front)
    for member in front.members:
        assert member.folder.is_relative_to(tmp_path / "out")
        assert isinstance(member.load(), nn.Module)
    assert list(store.iterdir()) == []


@pytest.mark.slow
def test_in_ray_with_mlflow_and_going_on(tmp_path: Path, trained: nn.Module) -> None:
    ray = {"inline": False, "slots": 2, "tracking": "default", "name": "notebook"}
    front = searched(tmp_path, trained, **ray)
    assert front.view.slots == 2
    assert front.view.counts["finished"] == 4
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("notebook")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 5

    more = {**ray, "inline": True, "slots": None, "resume": "latest", "trials": 6}
    longer = searched(tmp_path, trained, **more)
    assert longer.folder == front.folder
    assert len(longer.view.observations) == 6
    assert longer.view.observations[:4] == front.view.observations
    assert len(client.search_runs([experiment.experiment_id])) == 7

    other = copy.deepcopy(trained)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    with pytest.raises(AutopruneError, match="weights are not those this sweep began with"):
        searched(tmp_path, other, **{**more, "trials": 8})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"searcher": "nsga"}, "searcher 'nsga' is not known; did you mean 'nsga[23]'"),
        ({"recovry": FAST}, "option 'recovry' is not known; did you mean 'recovery'"),
        ({"criterion": "l3"}, "criterion 'l3' is not known; choose from"),
        ({"criterion": 3}, 'criterion is 3; give a name, such as "l1", or a criterion'),
        ({"criterion": Lamp}, "criterion is <class .*; give a name"),
        ({"objectives": ("main", "speed")}, "metric 'speed' is not known; did you mean 'speedup'"),
        ({"trials": None}, "the budget is unbounded"),
        ({"slots": 2}, "inline=True runs one trial at a time; leave slots and address out"),
        ({"where": "bench"}, "on other nodes of a cluster, and no cluster is named; set executor="),
        ({"slots": 0, "inline": False}, "slots is 0; choose 1 or more"),
        ({"min_kept": 0.0}, "min_kept"),
        ({"exclude": ["*"]}, "exclude"),
        ({"resume": "latest"}, "no sweep in"),
        ({"name": "a/b"}, "a sweep is named with letters"),
        ({"exclude": "3*"}, "exclude is '3\\*'; give a list of patterns"),
        ({"constraints": [("size_mb", 1)]}, "constraints is .*; give a list of Constraint"),
        ({"trials": "4", "seed": -1}, "trials is '4'; give a whole number(.|\n)*seed is -1; give"),
        ({"seed": 2**70}, "seed is .*; give a whole number, 0 or more, below 2\\*\\*63"),
        (
            {"recovery": {"epochs": 1}},
            "recovery is .*; give an autoprune.FitPlan or an autop",
        ),
        ({"runtime": "onnx"}, "there is no runtime 'onnx'; did you mean 'onnxruntime'"),
        ({"runtime": OnnxRuntime}, "runtime is <class .*; give a name, such as"),
        ({"minutes": float("nan")}, "minutes is nan; give more than 0, or None"),
        ({"device": "mps"}, "on device 'mps': no such device; choose cpu, cuda or cuda:<number>"),
        ({"measure_s": "1"}, "measure_s is '1'; give a number of seconds"),
        ({"batch_sizes": [True]}, "batch_sizes is \\[True\\]; give a list of whole numbers"),
        ({"inline": 1, "name": 3}, "inline is 1; give True(.|\n)*name is 3; give a text"),
        ({"searcher": lambda: 3}, "the searcher cannot be built \\(TypeError: .*; its factory is"),
        ({"searcher": lambda *_: 3}, "the searcher is a int without ask, tell"),
        ({"searcher": None}, "the searcher is None; give a name, or what builds one"),
        ({"storage": Path("store")}, "storage='store': name a folder from the root on"),
        ({"storage": "/nowhere"}, "executor.storage: cannot write to /nowhere"),
        (
            {"precisions": ("fp32", "int8")},
            'set meter=onnxruntime \\(from Python, runtime="onnxruntime"\\) on the CPU, or prec',
        ),
        (
            {
                "recovery": autoprune.Recovery(
                    FAST, sparsity=autoprune.Sparsity(epochs=1, budget="latency")
                )
            },
            "set profile=true \\(from Python, profile=True\\), or choose its budget macs",
        ),
        ({"storage": 3}, "storage is 3; give a path, a URL, or None"),
    ],
)
def test_what_cannot_be_searched_is_refused_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(AutopruneError, match=message):
        searched(tmp_path / "out", small_net(), **changes)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_trained_is_refused_with_every_fault() -> None:
    message = (
        "task is None; give a task (.|\n)*seed is -1; .*(.|\n)*plan is 3; give an autoprune.FitPl"
    )
    with pytest.raises(AutopruneError, match=message):
        autoprune.train(nn.Linear(2, 2), None, 3, seed=-1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "faults"),
    [
        (
            lambda: autoprune.FitPlan(epochs="3", lr=True, grad_clip="1", amp=None),
            (
                "epochs is '3'; give a whole number",
                "lr is True; give a number",
                "grad_clip is '1'; give a number, or None",
                "amp is None; give a text",
            ),
        ),
        (
            lambda: autoprune.Distillation(weight="a", hint_layers="conv*"),
            ("weight is 'a'; give a number", "hint_layers is 'conv*'; give a list of texts"),
        ),
        (
            lambda: autoprune.Reconstruction(batches="3"),
            ("batches is '3'; give a whole number",),
        ),
        (lambda: autoprune.Sparsity(epochs=1.5), ("epochs is 1.5; give a whole number",)),
        (lambda: autoprune.Schedule(rewind=1), ("rewind is 1; give True or False",)),
        (
            lambda: autoprune.Recovery({"epochs": 1}, sparsity=3, schedule=None),
            (
                "fit is {'epochs': 1}; give a FitPlan",
                "sparsity is 3; give a Sparsity, or None",
                "schedule is None; give a Schedule",
            ),
        ),
        (
            lambda: autoprune.Ladder(epochs=["0"], reduction="4"),
            (
                "epochs is ['0']; give a list of whole numbers",
                "reduction is '4'; give a number",
            ),
        ),
    ],
)
def test_plans_refuse_what_is_of_another_type(make: Any, faults: tuple[str, ...]) -> None:
    with pytest.raises(AutopruneError) as found:
        make()
    assert str(found.value) == "\n".join(faults)


def test_every_option_has_a_default_and_is_explained() -> None:
    assert list(DEFAULTS) == list(Options.__annotations__)
    for name in DEFAULTS:
        assert f"`{name}`" in autoprune.search.__doc__ or f"``{name}=" in (
            autoprune.search.__doc__ or ""
        )


def test_a_constraint_stops_trials_early(tmp_path: Path, trained: nn.Module) -> None:
    half = sum(p.numel() for p in trained.parameters()) / 2
    front = searched(tmp_path, trained, constraints=[Constraint("params", high=half)])
    assert front.view.counts["stopped"] > 0
    assert (front.table["params"] <= half).all()


def test_the_package_names_what_users_need_and_imports_nothing_for_it() -> None:
    assert {*autoprune.__all__} <= {*dir(autoprune)}
    with pytest.raises(AttributeError, match="has no attribute 'serach'"):
        autoprune.serach  # type: ignore[attr-defined]  # noqa: B018


def plain_text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_notebook_gets_one_table_that_is_drawn_anew() -> None:
    """`display` as IPython's: it returns a handle whose `update` replaces what it showed."""
    shown: list[str] = []
    new = 0

    class Handle:
        def update(self, table: Table) -> None:
            shown.append(plain_text(table))

    def display(table: Table, *, display_id: bool) -> Handle:
        nonlocal new
        new += 1
        assert display_id
        assert table._repr_mimebundle_([], [])["text/html"]
        shown.append(plain_text(table))
        return Handle()

    view = make_sweep(12)
    out = io.StringIO()
    watcher = LiveFront(Console(file=out, width=200), NotebookDrawing(display))
    watcher.on_start(view)
    for observation in view.observations:
        watcher.on_observation(observation, view)
    watcher.on_finish(view, complete=True)
    assert new == 1
    assert len(shown) == 14
    assert "12/12 trials  about 0:00 left" in shown[-1]
    assert out.getvalue().count("failed in") == view.counts["failed"] > 0


def test_a_terminal_gets_a_table_that_goes_away() -> None:
    view = make_sweep(12)
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    watcher = live_watcher(console)
    assert isinstance(watcher, LiveFront)
    assert isinstance(watcher.drawing, TerminalDrawing)
    watcher.on_start(view)
    watcher.on_observation(view.observations[7], view)
    watcher.on_finish(view, complete=True)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Pareto front of" in out
    assert "failed in recover" in out
    assert "\x1b[?25h" in out  # the cursor is back


def test_without_a_terminal_there_is_a_line_a_trial(
    tmp_path: Path, trained: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    searched(tmp_path, trained, trials=2)
    out = capsys.readouterr().out
    assert "[  1/2] trial   0" in out
    assert "[  2/2] trial   1" in out
    assert "\x1b" not in out
    assert out.count("Pareto front of") == 1
