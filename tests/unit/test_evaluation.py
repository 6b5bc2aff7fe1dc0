import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.domain.objective import Constraint
from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Stage,
    Trial,
    TrialError,
)
from autoprune.evaluation import (
    Progress,
    Snapshot,
    TrialContext,
    TrialLimits,
    failure_of,
    run_trial,
    trial_steps,
)
from autoprune.orchestration.artifacts import read_snapshot, save_snapshot, snapshots
from autoprune.orchestration.baseline import train_baseline
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.request import BaselineRequest
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.work import work
from autoprune.pruning.criteria import criterion_of
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.tasks.protocol import Inputs
from tests.pruning_tasks import Blobs, small_net
from tests.tiny import meter, request

PLAN = FitPlan(epochs=3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("outputs")
    return prepare(request(folder, recoveries={"finetune": Recovery(PLAN)}))


@pytest.fixture
def context(prepared) -> TrialContext:
    return prepared.context


@pytest.fixture
def trial(prepared) -> Trial:
    return Trial(3, prepared.plan.space.uniform(0.5), 11)


def metrics(observation: Observation) -> dict[str, float]:
    """What a trial found out, less what was timed."""
    assert isinstance(observation.outcome, Measurement), observation.outcome
    timed = ("speedup", "latency", "throughput")
    return {k: v for k, v in observation.outcome.metrics.items() if not k.startswith(timed)}


def fault(trial: Trial, context: TrialContext) -> Failure:
    outcome = run_trial(trial, context).outcome
    assert isinstance(outcome, Failure), outcome
    return outcome


def test_every_stage_and_epoch_is_reported_as_it_ends(trial, context):
    heard: list[Progress] = []
    observation = run_trial(trial, context, report=heard.append)

    stages = [(progress.stage, progress.epoch) for progress in heard]
    recovery = [(Stage.RECOVER, epoch) for epoch in (1, 2, 3)]
    cheap = [Stage.PRUNE, Stage.RECALIBRATE, Stage.MEASURE, Stage.PROXY]
    assert stages == [*((stage, 0) for stage in cheap), *recovery, (Stage.EVALUATE, 0)]
    assert {"macs", "params"} <= heard[0].metrics.keys()
    assert "speedup" not in heard[1].metrics
    assert {"speedup", "speedup_low", "latency_ms"} <= heard[2].metrics.keys()
    assert heard[3].metrics["proxy_accuracy"] == heard[3].metrics["accuracy"]
    assert all("train_loss" in progress.metrics for progress in heard[4:7])
    # of what is already known nothing is told again
    assert not any("macs" in progress.metrics for progress in heard[1:])
    assert [progress.snapshot is not None for progress in heard] == [False] * 4 + [True] * 4

    outcome = observation.outcome
    assert isinstance(outcome, Measurement)
    assert outcome.complete
    told: dict[str, float] = {}
    for progress in heard:
        told |= progress.metrics
    assert outcome.metrics == told
    assert set(outcome.seconds) == {str(stage) for stage in Stage}
    assert observation.seconds >= sum(outcome.seconds.values())
    assert observation.host


@pytest.mark.parametrize("stop", [0, 3, 4, 5, 6, 7])
def test_going_on_from_the_last_snapshot_equals_never_stopping(trial, context, tmp_path, stop):
    whole, networks = run_trial(trial, context), []

    def keep(progress: Progress) -> None:
        if progress.stage is Stage.EVALUATE:
            assert progress.snapshot is not None
            networks.append({k: v.clone() for k, v in progress.snapshot.state_dict.items()})

    run_trial(trial, context, report=keep)
    first = work(trial, context, InFolder(tmp_path))
    for _ in range(stop + 1):
        next(first)
    del first  # what a killed worker leaves is on disk
    heard: list[Progress] = []
    resumed = run_trial(trial, context, resume=_last(tmp_path, trial.number), report=heard.append)

    assert metrics(resumed) == metrics(whole)
    assert len(heard) == 8 if stop < 4 else len(heard) == 7 - stop
    if 4 <= stop < 7:
        assert heard[-1].snapshot is not None
        final = heard[-1].snapshot.state_dict
        assert all(torch.equal(final[name], tensor) for name, tensor in networks[0].items())


def _last(folder: Any, number: int) -> Snapshot | None:
    return read_snapshot(trial_folder(folder, number))


def test_a_trial_that_was_done_is_not_built_again(trial, context, tmp_path):
    outcome = list(work(trial, context, InFolder(tmp_path)))[-1]
    assert outcome.stage is Stage.EVALUATE
    done = _last(tmp_path, trial.number)
    assert done is not None
    resumed = run_trial(trial, context, resume=replace(done, state_dict={})).outcome
    assert isinstance(resumed, Measurement)
    assert resumed.metrics == done.metrics


def test_a_snapshot_that_a_gpu_wrote_is_read_on_the_cpu(trial, context, tmp_path, monkeypatch):
    steps = work(trial, context, InFolder(tmp_path))
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    for _ in range(5):
        next(steps)
    steps.close()
    snapshot = _last(tmp_path, trial.number)
    assert snapshot is not None
    assert snapshot.fit is not None
    momenta = [state["momentum_buffer"] for state in snapshot.fit.optimizer["state"].values()]
    assert {buffer.device.type for buffer in momenta} == {"cpu"}


def test_a_damaged_snapshot_costs_its_epochs_and_not_the_trial(trial, context, tmp_path):
    steps = work(trial, context, InFolder(tmp_path))
    for _ in range(6):
        next(steps)
    steps.close()
    (last,) = snapshots(trial_folder(tmp_path, trial.number))
    for file in last.iterdir():
        file.write_bytes(b"\x00" * 10)

    assert _last(tmp_path, trial.number) is None
    again = list(work(trial, context, InFolder(tmp_path)))
    assert again[0].stage is Stage.PRUNE
    assert [path.name for path in snapshots(trial_folder(tmp_path, trial.number))] == ["model"]


def test_a_snapshot_that_cannot_be_saved_fails_the_trial(trial, context, tmp_path):
    (tmp_path / "trials").write_text("a file where the folder should be")
    steps = work(trial, context, InFolder(tmp_path))

    def to_the_end() -> Iterator[Observation]:
        yield (yield from steps)

    outcome = list(to_the_end())[-1].outcome
    assert isinstance(outcome, Failure)
    assert outcome.stage is Stage.RECOVER
    assert "NotADirectoryError" in outcome.reason or "FileExistsError" in outcome.reason


def test_a_draft_that_a_kill_left_is_no_snapshot(trial, context, tmp_path):
    snapshot = next(p.snapshot for p in trial_steps(trial, context) if p.snapshot is not None)
    folder = trial_folder(tmp_path, trial.number)
    save_snapshot(folder, snapshot).rename(folder / ".draft-epoch-0002")
    assert snapshots(folder) == []
    next(work(trial, context, InFolder(tmp_path)))
    assert not list(folder.iterdir())
    save_snapshot(folder, snapshot)
    assert [path.name for path in folder.iterdir()] == ["epoch-0001"]


def test_two_workers_may_save_one_trial_at_a_time(trial, context, tmp_path):
    """One that nobody could reach is given up, and may still be at work for a moment."""
    *_, done = [p.snapshot for p in trial_steps(trial, context) if p.snapshot is not None]
    begin = threading.Barrier(2)

    def save_often() -> None:
        begin.wait()
        for _ in range(30):
            save_snapshot(tmp_path, done)

    with ThreadPoolExecutor() as pool:
        for worker in [pool.submit(save_often) for _ in range(2)]:
            worker.result()
    assert read_snapshot(tmp_path).metrics == done.metrics
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_network_that_is_done_is_kept_though_its_outputs_hold_no_tensor(trial, context, tmp_path):
    done = [p.snapshot for p in trial_steps(trial, context) if p.snapshot is not None][-1]
    assert save_snapshot(tmp_path, replace(done, outputs=())).name == "model"


class Watched:
    """A gate that knows whether somebody holds it; training and measuring do not nest."""

    def __init__(self) -> None:
        self.held = False

    @contextmanager
    def step(self) -> Iterator[None]:
        assert not self.held
        self.held = True
        yield
        self.held = False

    measuring = step


def test_the_network_never_runs_past_the_gate(trial, tmp_path):
    gate, held = Watched(), []
    asked = request(tmp_path, recoveries={"finetune": Recovery(PLAN)}, gate=gate)
    prepared = prepare(
        replace(
            asked,
            meter=replace(asked.meter, gate=gate),
            baseline=BaselineRequest(plan=PLAN),
            criteria={"taylor": criterion_of("taylor")},
        )
    )
    prepared.context.model.register_forward_hook(lambda *_: held.append(gate.held))
    spec = replace(trial.spec, criterion="taylor")
    assert isinstance(run_trial(replace(trial, spec=spec), prepared.context).outcome, Measurement)
    assert len(held) > 100
    assert all(held)


def test_the_baseline_is_trained_and_judged_behind_the_gate():
    gate, held, network = Watched(), [], small_net()
    network.register_forward_hook(lambda *_: held.append(gate.held))
    train_baseline(network, Blobs(), PLAN, seed=0, step_guard=gate.step)
    assert held == [True] * (3 * 3 + 3 * 3)


@dataclass
class Broken(Blobs):
    """Blobs whose loss, or judging, goes wrong from a certain call on."""

    def __init__(self, what: Any, *, after: int = 0) -> None:
        super().__init__()
        self.what, self.calls, self.after = what, 0, after

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        self.calls += torch.is_grad_enabled()
        value = super().loss(model, batch)
        if self.calls <= self.after or not torch.is_grad_enabled():
            return value
        if isinstance(self.what, Exception):
            raise self.what
        return value * self.what


FAULTS = {
    "NaN": (float("nan"), Cause.NAN_LOSS, r"training loss became nan at epoch 1, step 3"),
    "infinity": (float("inf"), Cause.NAN_LOSS, r"became inf"),
    "CUDA memory": (torch.OutOfMemoryError("CUDA out of memory"), Cause.OUT_OF_MEMORY, "CUDA out"),
    "memory": (MemoryError(), Cause.OUT_OF_MEMORY, "MemoryError"),
    "CPU allocator": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        Cause.OUT_OF_MEMORY,
        "can't allocate",
    ),
    "user's code": (KeyError("labels"), Cause.ERROR, r"KeyError: 'labels'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_in_training_is_a_failure_with_its_cause(name, trial, context):
    what, cause, reason = FAULTS[name]
    failure = fault(trial, replace(context, task=Broken(what, after=2)))
    assert (failure.stage, failure.cause) == (Stage.RECOVER, cause)
    assert re.search(reason, failure.reason)


def test_really_out_of_memory(trial, context):
    class Greedy(Blobs):
        def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return super().loss(model, batch) + torch.empty(2**50)[0]

    failure = fault(trial, replace(context, task=Greedy()))
    assert failure.cause is Cause.OUT_OF_MEMORY


def test_what_is_measured_of_every_network_is_not_the_tasks_to_tell(trial, context):
    class Boasting(Blobs):
        def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
            return {**super().evaluate(model, batches), "speedup": 99.0, "params": 1.0}

    failure = fault(trial, replace(context, task=Boasting()))
    assert "returned ['params', 'speedup'], which are measured of every network" in failure.reason


def test_a_metric_that_is_not_finite_is_a_failure(trial, context):
    class Nowhere(Blobs):
        def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
            list(batches)
            return {"accuracy": float("nan")}

    failure = fault(trial, replace(context, task=Nowhere()))
    assert failure.cause is Cause.ERROR
    assert "finite" in failure.reason


def test_a_time_limit_ends_a_trial_between_two_steps(trial, context):
    limited = replace(context, limits=TrialLimits(time_limit_s=1e-6))
    failure = fault(trial, limited)
    assert (failure.stage, failure.cause) == (Stage.PRUNE, Cause.TIME_LIMIT)
    assert "trial 3 took longer than its 1e-06 s" in failure.reason
    assert "budget.trial_limit_s" in failure.reason


def test_the_time_before_a_resume_counts_towards_the_limit(trial, context, tmp_path):
    steps = work(trial, context, InFolder(tmp_path))
    for _ in range(5):
        next(steps)
    steps.close()
    snapshot = _last(tmp_path, trial.number)
    assert snapshot is not None
    long_ago = replace(snapshot, seconds={**snapshot.seconds, "recover": 1000.0})
    limited = replace(context, limits=TrialLimits(time_limit_s=900.0))
    outcome = run_trial(trial, limited, resume=long_ago).outcome
    assert isinstance(outcome, Failure)
    assert (outcome.stage, outcome.cause) == (Stage.RECOVER, Cause.TIME_LIMIT)


@dataclass(frozen=True)
class NoRuntime:
    name: str = "none"
    library: str = "none 0"
    device: str = "cpu"
    threads: int = 1

    def prepare(self, model: nn.Module, example: Inputs) -> Any:
        raise TrialError(Cause.RUNTIME, "operator Frobnicate is not supported")


def test_a_runtime_that_fails_is_a_failure(trial, context):
    failure = fault(trial, replace(context, meter=replace(meter(), runtime=NoRuntime())))
    assert failure == Failure(Stage.MEASURE, Cause.RUNTIME, "operator Frobnicate is not supported")


@pytest.mark.parametrize(
    "constraint",
    [Constraint("speedup", low=1e6), Constraint("macs", high=1.0), Constraint("size_mb", high=0)],
    ids=str,
)
def test_a_broken_constraint_on_costs_ends_a_trial_before_training(trial, context, constraint):
    heard: list[Progress] = []
    goal = replace(context.goal, constraints=(constraint,))
    task = Broken(AssertionError("it trained"))
    observation = run_trial(trial, replace(context, goal=goal, task=task), report=heard.append)
    outcome = observation.outcome
    assert isinstance(outcome, Measurement)
    assert outcome.stopped_by == str(constraint)
    assert not outcome.complete
    assert heard[-1].stage is Stage.PROXY
    assert outcome.metrics["accuracy"] == outcome.metrics["proxy_accuracy"]


def test_a_constraint_on_quality_waits_for_recovery(trial, context):
    goal = replace(context.goal, constraints=(Constraint("accuracy", low=2.0),))
    outcome = run_trial(trial, replace(context, goal=goal)).outcome
    assert isinstance(outcome, Measurement)
    assert outcome.complete
    assert not goal.feasible(outcome)


def test_a_trial_leaves_the_baseline_and_the_threads_as_they_are(trial, context):
    before = {k: v.clone() for k, v in context.model.state_dict().items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    steps = trial_steps(trial, replace(context, threads=1))
    next(steps)
    assert torch.get_num_threads() == 1
    steps.close()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    run_trial(trial, context)
    after = context.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_failure_of_keeps_the_words_of_an_error():
    failure = failure_of(ValueError("no"), Stage.PROXY)
    assert failure == Failure(Stage.PROXY, Cause.ERROR, "ValueError: no")


def test_one_trial_needs_neither_ray_nor_mlflow():
    code = (
        "import sys, autoprune.evaluation; "
        "print(sorted({'ray', 'mlflow', 'hydra', 'omegaconf', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
