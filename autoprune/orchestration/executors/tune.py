"""The Ray Tune executor: a sweep in parallel trials, on this machine or on a cluster."""

import faulthandler
import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cloudpickle
import ray
from ray import tune
from ray.tune.execution import class_cache

from autoprune.domain.trial import Cause, Observation, Trial
from autoprune.evaluation import Progress, TrialContext
from autoprune.orchestration.background import short_turns
from autoprune.orchestration.executors.cluster import (
    check_address,
    check_versions,
    cluster,
    coming,
    nodes,
    this_machine,
)
from autoprune.orchestration.executors.lifeline import lifeline, parts_of_the_cluster
from autoprune.orchestration.executors.pareto_asha import ParetoAsha
from autoprune.orchestration.executors.resources import Demand, slots_of
from autoprune.orchestration.executors.seeing import check_seen
from autoprune.orchestration.executors.tune_actors import our_actor_manager
from autoprune.orchestration.executors.tune_driver import (
    RETRIES,
    WORTH,
    Adapter,
    ProgressCallback,
    Stopper,
    trial_name,
)
from autoprune.orchestration.executors.user_code import runtime_env
from autoprune.orchestration.interrupt import Interrupt
from autoprune.orchestration.storage import Storage
from autoprune.orchestration.store import Store
from autoprune.orchestration.sweep import Sweep
from autoprune.orchestration.work import work

GRACE_S = 5.0
"""How much longer than its limit a trial may take before its worker ends itself."""

LOOK_S = 5.0
"""How often a cluster is looked at for nodes that have come or gone."""


@dataclass(frozen=True)
class TuneExecutor:
    """Runs trials in Ray actors that are reused from trial to trial.

    `address` None starts a cluster on this machine; ``auto`` or an address joins an existing
    one. `wanted_slots` trials run at a time, each with what `demand` says; None fills the cluster,
    also with nodes that join later. `retries` tells how often a trial that is lost with its worker
    is run again, by cause. `code_paths` are where the user's own modules are: they are put before a
    worker's import path, and what was loaded from them goes to the nodes of a cluster.
    """

    wanted_slots: int | None = None
    demand: Demand = field(default_factory=Demand)
    address: str | None = None
    retries: Mapping[Cause, int | None] = field(default_factory=lambda: RETRIES)
    code_paths: Sequence[str] = ()

    @cached_property
    def slots(self) -> int:
        """How many trials run at a time; asks the cluster where there is one.

        Raises AutopruneError where not as many fit as are wanted, or none. On this machine cores
        are bookkeeping, of which more may be wanted than there are; GPUs are not.
        """
        if self.address is None:
            cores = (self.wanted_slots or 0) * self.demand.cpus
            return slots_of(self.demand, [this_machine(cores=cores)], wanted=self.wanted_slots)
        with cluster(self.address):
            return slots_of(self.demand, nodes(), coming=coming(), wanted=self.wanted_slots)

    def check(self, place: Store) -> Sequence[str]:
        """Raise AutopruneError where nobody answers at the address, no trial would fit, a node has
        other versions, or one that holds trials does not see the place where they save; otherwise
        tell what trials would wait for.

        Ray 2.60 itself goes on trying for minutes.
        """
        check_address(self.address)
        if self.address is None:
            return self.waits()
        with cluster(self.address):
            waits = self.waits()
            check_versions()
            check_seen(place, self.demand)
        return waits

    def waits(self) -> Sequence[str]:
        """What trials would wait for. Raises AutopruneError as `slots` does."""
        slots = self.slots
        if self.address is None:
            return ()
        with cluster(self.address):
            there = sum(map(self.demand.fits, nodes()))
        if there >= slots:
            return ()
        return (f"{there} of {slots} slots are there; the others wait for nodes that may yet come",)

    def kept(self) -> AbstractContextManager[None]:
        """Stay in the cluster, or keep the one on this machine."""
        # cores are bookkeeping and may be shared; the GPUs are those that Ray finds
        cpus = max(1, round(self.slots * self.demand.cpus))
        return cluster(self.address, cpus=cpus, runtime_env=runtime_env(self.code_paths))

    def run(
        self, sweep: Sweep, context: TrialContext, storage: Storage, *, interrupt: Interrupt
    ) -> None:
        """Run the sweep until its budget is used up or the user interrupts."""
        with self.kept():
            self._fit(sweep, context, storage, interrupt=interrupt)

    def _fit(
        self, sweep: Sweep, context: TrialContext, storage: Storage, *, interrupt: Interrupt
    ) -> None:
        # Serialised here and put once: a worker can then extend its import path before it
        # unpickles the user's classes
        payload = ray.put(cloudpickle.dumps(context))
        adapter = Adapter(
            sweep,
            self._slots_now(),
            interrupt,
            retries=self.retries,
            limit_s=context.limits.time_limit_s,
        )
        trainable = tune.with_resources(
            tune.with_parameters(
                TrialActor,
                payload=payload,
                storage=storage,
                code_paths=list(self.code_paths),
            ),
            self._placement,
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=adapter,
                scheduler=ParetoAsha(adapter),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=trial_name,
                trial_dirname_creator=trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                # the driver's alone: a checkpoint at a trial's end, which is Tune's default, would
                # have every worker look for that folder
                storage_path=str(sweep.journal.path.parent.absolute()),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                stop=Stopper(adapter, interrupt),
                callbacks=[ProgressCallback(adapter)],
                verbose=0,
            ),
        )
        with (
            _no_keys_in_arguments(),
            short_turns(),
            our_actor_manager(),
            lifeline(parts_of_the_cluster(), adapter.cut_off, adapter.leave),
        ):
            try:
                tuner.fit()
            except Exception:
                if adapter.fault is None:
                    raise
        if adapter.fault is not None:
            raise adapter.fault

    @property
    def _placement(self) -> tune.PlacementGroupFactory:
        labels = [dict(self.demand.labels)] if self.demand.labels else None
        return tune.PlacementGroupFactory(
            [self.demand.bundle], strategy="PACK", bundle_label_selector=labels
        )

    def _slots_now(self) -> Callable[[], int]:
        """How many trials may run at a time: of a cluster that is to be filled it is looked up
        now and then, since nodes join late and are lost.
        """
        if self.address is None or self.wanted_slots is not None:
            return lambda: self.slots
        looked_s, found = time.perf_counter(), self.slots

        def look() -> int:
            nonlocal looked_s, found
            if time.perf_counter() - looked_s > LOOK_S:
                looked_s = time.perf_counter()
                found = max(1, sum(map(self.demand.fits, nodes())))
            return found

        return look


@contextmanager
def _no_keys_in_arguments() -> Iterator[None]:
    """Let Tune not hand the driver's AWS keys to workers: they have what their own node has.

    Tune 2.60 does it by the arguments of a process, which every user of a node can see.
    """
    names = class_cache.ENV_VARS_TO_PROPAGATE
    keys = {name for name in names if name.startswith("AWS_")}
    names -= keys
    try:
        yield
    finally:
        names |= keys


class TrialActor(tune.Trainable):
    """A slot on a worker: takes one step of a trial at each call, then the next trial."""

    def setup(  # type: ignore[override]  # with_parameters hands these over by keyword
        self, config: dict[str, Any], payload: Any, storage: Storage, code_paths: Sequence[str]
    ) -> None:
        """Unpack what all trials share, once for this actor's life."""
        sys.path[:0] = [path for path in code_paths if path not in sys.path]
        data = ray.get(payload) if isinstance(payload, ray.ObjectRef) else payload
        self._context: TrialContext = cloudpickle.loads(data)
        self._saved_in = storage
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial."""
        trial = Trial.from_json(json.loads(new_config["trial"]))
        self._steps: Generator[Progress, None, Observation] = work(
            trial, self._context, self._saved_in
        )
        self._began = time.perf_counter()
        return True

    def step(self) -> dict[str, Any]:
        """One stage or epoch; the last result carries the observation."""
        try:
            with self._watchdog():
                progress = next(self._steps)
        except StopIteration as end:
            return {"observation": json.dumps(end.value.to_json()), "done": True}
        worth = progress.worth
        return {
            "stage": str(progress.stage),
            "epoch": progress.epoch,
            "metrics": json.dumps(dict(progress.metrics)),
            **({} if worth is None else {WORTH: json.dumps(worth.to_json())}),
        }

    @contextmanager
    def _watchdog(self) -> Iterator[None]:
        """End this process where a step hangs past the trial's limit.

        Such a step never comes to look at the time; faulthandler's own thread does, even while
        native code holds the interpreter.
        """
        limit_s = self._context.limits.time_limit_s
        if limit_s is None:
            yield
            return
        left_s = limit_s - (time.perf_counter() - self._began)
        faulthandler.dump_traceback_later(max(left_s, 0.0) + GRACE_S, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: `work` writes a trial's snapshots itself."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: `work` goes on from a trial's last snapshot itself."""
