"""Trials in int8: what is measured, judged and kept is the quantised network, never its twin."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from autoprune.domain.errors import AutopruneError
from autoprune.domain.ladder import Ladder
from autoprune.domain.objective import Constraint
from autoprune.domain.trial import Measurement, Observation, Stage, Trial
from autoprune.evaluation import Progress, example_outputs, run_trial
from autoprune.measurement.cost import costs
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.quantise import quantise
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import Int8Network, OnnxRuntime
from autoprune.orchestration.artifacts import load, read_outputs, read_snapshot, save_snapshot
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.onnx_files import ONNX_FILE, read_onnx
from autoprune.orchestration.planning import make_plan
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.profiling import profile_network
from autoprune.orchestration.promotion.proof import Subject, prove
from autoprune.orchestration.request import BaselineRequest, GoalRequest, SweepRequest
from autoprune.orchestration.storage import InFolder, InStore
from autoprune.orchestration.store import Store
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.work import work
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.searchers.named import searcher_named
from tests.pruning_tasks import Blobs, small_net
from tests.tiny import meter, request

TASK = Blobs()
BOTH = ("fp32", "int8")
RECOVERIES = {"finetune": Recovery(FitPlan(epochs=3)), "none": Recovery(FitPlan(epochs=0))}


def asked(folder: Path, **changes: Any) -> SweepRequest:
    facts = {
        "meter": PairedMeter(OnnxRuntime(), NoGate(), meter().settings),
        "precisions": BOTH,
        "calibration_batches": 2,
        "baseline": BaselineRequest(plan=FitPlan(epochs=4, lr=0.05), identity={"task": "int8"}),
        "recoveries": RECOVERIES,
        **changes,
    }
    return request(folder, **facts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(asked(tmp_path_factory.mktemp("outputs")))


def trial_of(prepared: Prepared, recovery: str = "finetune", precision: str = "int8") -> Trial:
    spec = replace(prepared.plan.space.uniform(0.5), recovery=recovery, precision=precision)
    return Trial(3, spec, 11)


def kept(trial: Trial, prepared: Prepared, folder: Path, **how: Any) -> tuple[Observation, Path]:
    """Run a trial to its end; what it came to, and the folder of its network."""

    def keep(progress: Progress) -> None:
        if progress.snapshot is not None:
            save_snapshot(trial_folder(folder, trial.number), progress.snapshot)

    observation = run_trial(trial, prepared.context, report=keep, **how)
    assert isinstance(observation.outcome, Measurement), observation.outcome
    return observation, trial_folder(folder, trial.number) / "model"


def metrics(observation: Observation) -> dict[str, float]:
    """What a trial found out, less what was timed."""
    assert isinstance(observation.outcome, Measurement)
    timed = ("speedup", "latency", "throughput")
    return {k: v for k, v in observation.outcome.metrics.items() if not k.startswith(timed)}


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_what_is_told_and_kept_is_the_quantised_network(
    prepared: Prepared, tmp_path: Path, recovery: str
) -> None:
    observation, folder = kept(trial_of(prepared, recovery), prepared, tmp_path)
    network = load(folder, model=prepared.baseline.model)
    assert isinstance(network, Int8Network)
    assert network.origin is not None
    told = metrics(observation)
    assert told["accuracy"] == evaluate(network, TASK, "val")["accuracy"]
    assert costs(network, TASK.example()).items() <= told.items()
    assert told["size_mb"] < costs(network.origin, TASK.example())["size_mb"]
    (saved,), (found,) = read_outputs(folder), example_outputs(network, TASK)
    assert torch.equal(saved, found)
    (twin,) = example_outputs(network.origin, TASK)
    assert not torch.equal(saved, twin)
    assert isinstance(observation.outcome, Measurement)
    assert observation.outcome.speedup is not None
    assert observation.outcome.speedup.runtime == "onnx"


def test_the_same_spec_in_fp32_is_cut_and_healed_alike(prepared: Prepared, tmp_path: Path) -> None:
    _, one = kept(trial_of(prepared), prepared, tmp_path / "one")
    _, two = kept(trial_of(prepared, precision="fp32"), prepared, tmp_path / "two")
    int8, plain = (load(folder, model=prepared.baseline.model) for folder in (one, two))
    assert isinstance(int8, Int8Network)
    assert int8.origin is not None
    assert not isinstance(plain, Int8Network)
    own = int8.origin.state_dict()
    assert all(torch.equal(own[name], t) for name, t in plain.state_dict().items())
    assert not (two / ONNX_FILE).exists()


def test_costs_are_told_once_they_are_known(prepared: Prepared) -> None:
    heard: list[Progress] = []
    run_trial(trial_of(prepared), prepared.context, report=heard.append)
    stages = [progress.stage for progress in heard]
    assert stages == [
        *(Stage.PRUNE, Stage.RECALIBRATE, Stage.MEASURE, Stage.PROXY),
        *(Stage.RECOVER, Stage.RECOVER, Stage.RECOVER, Stage.EVALUATE),
    ]
    assert not heard[0].metrics
    assert {"macs", "size_mb", "speedup"} <= heard[2].metrics.keys()


def test_a_constraint_on_size_counts_the_bytes_in_int8(prepared: Prepared) -> None:
    def outcome(precision: str, high: float) -> Measurement:
        goal = replace(prepared.goal, constraints=(Constraint("size_mb", high=high),))
        context = replace(prepared.context, goal=goal)
        found = run_trial(trial_of(prepared, precision=precision), context).outcome
        assert isinstance(found, Measurement)
        return found

    sizes = [outcome(precision, 1.0).metrics["size_mb"] for precision in BOTH]
    middle = sum(sizes) / 2
    assert outcome("fp32", middle).stopped_by is not None
    assert outcome("int8", middle).stopped_by is None


@pytest.mark.parametrize("stop", [4, 7])
def test_going_on_from_a_snapshot_equals_never_stopping(
    prepared: Prepared, tmp_path: Path, stop: int
) -> None:
    trial = trial_of(prepared)
    whole, folder = kept(trial, prepared, tmp_path / "whole")
    first = work(trial, prepared.context, InFolder(tmp_path))
    for _ in range(stop + 1):
        next(first)
    del first
    resume = read_snapshot(trial_folder(tmp_path, trial.number))
    resumed, again = kept(trial, prepared, tmp_path, resume=resume)
    assert metrics(resumed) == metrics(whole)
    assert read_onnx(again / ONNX_FILE) == read_onnx(folder / ONNX_FILE)


@pytest.mark.parametrize("rung", [0, 1])
def test_a_trial_that_pauses_is_worth_what_it_would_be_deployed_as(
    prepared: Prepared, tmp_path: Path, rung: int
) -> None:
    context = replace(prepared.context, rungs=(rung,))
    trial, storage = trial_of(prepared), InFolder(tmp_path)
    steps = work(trial, context, storage)
    progress = next(one for one in steps if one.worth is not None)
    steps.close()
    assert progress.worth is not None
    network = load(trial_folder(tmp_path, trial.number), model=prepared.baseline.model)
    assert isinstance(network, Int8Network)
    assert metrics(progress.worth)["accuracy"] == evaluate(network, TASK, "val")["accuracy"]
    again = next(work(trial, context, storage))  # the executor has not heard that it got here
    assert again.worth is not None
    assert metrics(again.worth) == metrics(progress.worth)
    assert again.snapshot is not None
    assert again.snapshot.program == network.program


def test_snapshots_in_a_store_keep_the_program(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    storage = InStore(Store(str(tmp_path / "store")), "sweep")
    for _ in work(trial_of(prepared, "none"), prepared.context, storage):
        pass
    found = storage.read(3)
    assert found is not None
    assert found.program is not None
    assert storage.fetch(3, tmp_path)
    assert read_onnx(trial_folder(tmp_path, 3) / "model" / ONNX_FILE) == found.program


def test_a_sweep_over_precisions_has_members_in_int8_that_are_what_it_told(tmp_path: Path) -> None:
    request_ = asked(
        tmp_path,
        goal=GoalRequest(("main", "size_mb")),
        searcher=searcher_named("random"),
        budget=Budget(trials=4),
        recoveries={"none": RECOVERIES["none"]},
    )
    launched = launch(request_, Tracking(export=("onnx",)))
    view = launched.result.view
    assert {o.trial.spec.precision for o in view.observations} == set(BOTH)
    members = [m for m in view.front.members if m.trial.spec.precision == "int8"]
    assert members
    assert not [line for line in launched.warnings if "export" in line]
    assert len(launched.exported) == len(view.front.members)
    baseline = prepare(request_).baseline.model
    for member in members:
        number = member.trial.number
        network = load(trial_folder(launched.result.folder, number), model=baseline)
        assert isinstance(network, Int8Network)
        assert metrics(member)["accuracy"] == evaluate(network, TASK, "val")["accuracy"]
        (line,) = [one for one in launched.exported if one.startswith(f"trial {number}: ")]
        assert "(int8, batch free; outputs differ" in line
    facts = json.loads((launched.result.folder / "pareto.json").read_text())["front"]
    assert [row["precision"] for row in facts] == [
        member.trial.spec.precision for member in view.front.members
    ]
    header = (launched.result.folder / "journal.jsonl").read_text().splitlines()[0]
    assert "calibration_batches" in json.loads(header)["facts"]["conditions"]


def test_a_proof_is_of_the_quantised_network(prepared: Prepared, tmp_path: Path) -> None:
    _, folder = kept(trial_of(prepared), prepared, tmp_path)
    subject = Subject(folder, prepared.baseline.model, TASK, prepared.request.meter)
    proof = prove(subject)
    network = load(folder, model=prepared.baseline.model)
    assert proof.difference == 0
    assert proof.candidate == evaluate(network, TASK, "test")
    other = tmp_path / "other"
    _, swapped = kept(replace(trial_of(prepared), seed=12), prepared, other)
    (folder / ONNX_FILE).write_bytes((swapped / ONNX_FILE).read_bytes())
    assert prove(subject).difference > 1e-4


def test_what_cannot_be_quantised_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1) if torch.compiler.is_exporting() and len(x) == 2 else x

    model = torch.nn.Sequential(Fixed(), *small_net())
    with pytest.raises(AutopruneError, match="cannot be exported to ONNX with the batch free"):
        make_plan(asked(tmp_path, model=model))
    assert make_plan(asked(tmp_path, model=model, precisions=("fp32",))).space.precisions == (
        "fp32",
    )
    with pytest.raises(AutopruneError, match="runtime 'eager' takes networks in fp32 only"):
        make_plan(asked(tmp_path, meter=meter()))


def test_a_network_in_int8_is_not_searched(tmp_path: Path) -> None:
    int8 = quantise(small_net().eval(), TASK, batches=1, seed=0)
    with pytest.raises(AutopruneError, match="int8 cannot be pruned; search its `origin`, which"):
        make_plan(asked(tmp_path, model=int8))


@pytest.mark.slow  # a profile is a trial a width
def test_a_profile_is_of_networks_in_fp32(tmp_path: Path) -> None:
    request_ = asked(
        tmp_path,
        precisions=("int8", "fp32"),
        recoveries={"none": RECOVERIES["none"]},
        searcher=searcher_named("random"),
        budget=Budget(trials=3),
    )
    view = launch(request_, Tracking(optuna=False)).result.view
    profiled = profile_network(prepare(request_), checks=0)
    plain = [o for o in view.observations if o.trial.spec.precision == "fp32"]
    assert len(plain) < len(view.observations)
    assert len(profiled.measured) == len(plain)


def test_conditions_tell_of_calibration_where_there_is_some(tmp_path: Path) -> None:
    assert asked(tmp_path).conditions["calibration_batches"] == "2"
    assert "calibration_batches" not in asked(tmp_path, precisions=("fp32",)).conditions


@pytest.mark.slow  # five trials, most of them quantised twice or more
def test_a_ladder_goes_over_precisions(tmp_path: Path) -> None:
    launched = launch(
        asked(
            tmp_path,
            ladder=Ladder((1,), 2.0),
            searcher=searcher_named("random"),
            budget=Budget(trials=5),
            goal=GoalRequest(("main", "size_mb")),
            recoveries={"finetune": Recovery(FitPlan(epochs=2))},
        ),
        Tracking(optuna=False),
    )
    view = launched.result.view
    assert view.counts["paused"]
    assert not view.counts["failed"]


@pytest.fixture(scope="module")
def artifact(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(trial_of(prepared, "none"), prepared, tmp_path_factory.mktemp("artifact"))[1]


def outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def nested(model: Any) -> None:
    """A tensor in another file, in a node of a branch."""
    node = model.graph.node.add(op_type="If")
    branch = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
    constant = branch.g.node.add(op_type="Constant").attribute.add(name="value")
    constant.t.external_data.add(key="location", value="secret")


def foreign(model: Any) -> None:
    model.graph.node[0].domain = "somebody.else"


def reading(model: Any) -> None:
    model.graph.node.add(op_type="EPContext", domain="com.microsoft")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, r"holds the tensor '.*' in another file; export the network again"),
        (nested, "holds the tensor '' in another file"),
        (foreign, "holds the operator '.*' of 'somebody.else'"),
        (reading, "holds the operator 'EPContext' of 'com.microsoft'"),
    ],
)
def test_a_program_that_reaches_for_files_is_not_loaded(
    artifact: Path, tmp_path: Path, change: Any, message: str
) -> None:
    model = onnx.load_model_from_string((artifact / ONNX_FILE).read_bytes())
    change(model)
    (tmp_path / ONNX_FILE).write_bytes(model.SerializeToString())
    with pytest.raises(AutopruneError, match=message):
        read_onnx(tmp_path / ONNX_FILE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no program at .*model.onnx, which the recipe beside it says is in int8; restore"),
        (b"\xff" * 40, "model.onnx is not a program of ONNX"),
    ],
)
def test_without_its_program_a_network_in_int8_is_not_loaded(
    artifact: Path, tmp_path: Path, prepared: Prepared, content: bytes | None, message: str
) -> None:
    for file in artifact.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load(tmp_path, model=prepared.baseline.model)
    if content is None:
        (tmp_path / ONNX_FILE).unlink()
    else:
        (tmp_path / ONNX_FILE).write_bytes(content)
    with pytest.raises(AutopruneError, match=message):
        load(tmp_path, model=prepared.baseline.model)


def test_a_link_in_the_place_of_a_program_is_not_followed(
    artifact: Path, tmp_path: Path, prepared: Prepared
) -> None:
    for file in artifact.iterdir():
        if file.name != ONNX_FILE:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / ONNX_FILE).symlink_to(artifact / ONNX_FILE)
    with pytest.raises(AutopruneError, match="is a symbolic link"):
        load(tmp_path, model=prepared.baseline.model)
