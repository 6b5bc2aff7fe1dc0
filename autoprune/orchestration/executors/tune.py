"""The Ray Tune executor: a sweep in parallel trials, on this machine or on a cluster."""

import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cloudpickle
import ray
import torch
from ray import tune

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Observation, Trial
from autoprune.evaluation import Progress, TrialContext
from autoprune.orchestration.environment import environment
from autoprune.orchestration.executors.tune_driver import (
    Adapter,
    ProgressCallback,
    Stopper,
    trial_name,
)
from autoprune.orchestration.interrupt import Interrupt
from autoprune.orchestration.sweep import Sweep
from autoprune.orchestration.work import work

ENVIRONMENT = {
    # With a searcher Tune 2.60 holds one pending trial, and reused actors then run one at a time
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    # The journal and the tracker record results; Tune's CSV, JSON and TensorBoard files do not
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C is ours: Tune's own handler ends every trial at once
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A trial's failure is shown once, by the console
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Tune would move every worker into its trial's folder, away from the user's relative paths
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


ANSWER_S = 5.0


@dataclass(frozen=True)
class TuneExecutor:
    """Runs trials in Ray actors that are reused from trial to trial.

    `address` None starts a cluster on this machine; ``auto`` or an address joins an existing
    one. `wanted_slots` trials run at a time, each with `cpus` and `gpus`; None fills the
    cluster. `code_paths` are put before a worker's import path, so that it finds the user's own
    modules.
    """

    wanted_slots: int | None = None
    cpus: float = 1
    gpus: float = 0
    address: str | None = None
    code_paths: Sequence[str] = ()

    @cached_property
    def slots(self) -> int:
        """How many trials run at a time; asks the cluster where there is one.

        Raises AutopruneError where not as many fit as are wanted, or none. On this machine cores
        are bookkeeping, of which more may be wanted than there are; GPUs are not.
        """
        if self.address is None:
            have = this_machine()
            if self.wanted_slots is not None:
                have["CPU"] = max(have["CPU"], self.wanted_slots * self.cpus)
        else:
            with self._cluster():
                have = ray.cluster_resources()  # type: ignore[no-untyped-call]
        fitting = [have.get("CPU", 0) // self.cpus] if self.cpus else []
        fitting += [have.get("GPU", 0) // self.gpus] if self.gpus else []
        wanted = self.wanted_slots or max(1, int(min(fitting)))
        if min(fitting) < wanted:
            raise AutopruneError(
                f"{wanted} trials at a time ask for {wanted * self.cpus:g} CPUs and "
                f"{wanted * self.gpus:g} GPUs, there are {have.get('CPU', 0):g} and "
                f"{have.get('GPU', 0):g}; lower executor.slots, cpus or gpus"
            )
        return wanted

    def check(self) -> None:
        """Raise AutopruneError where nobody answers at the address, or no trial would fit.

        Ray 2.60 itself goes on trying for minutes.
        """
        host, separator, port = (self.address or "").rpartition(":")
        if separator and port.isdigit() and "/" not in host:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
            except OSError as error:
                raise self._unreachable(error) from error
        _ = self.slots

    def run(
        self, sweep: Sweep, context: TrialContext, folder: Path, *, interrupt: Interrupt
    ) -> None:
        """Run the sweep until its budget is used up or the user interrupts."""
        with self._cluster():
            self._fit(sweep, context, folder, interrupt=interrupt)

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """Join or start the cluster, and leave it afterwards, unless the caller is in one."""
        with _ray_as_we_need_it():
            if ray.is_initialized():
                yield
                return
            self._connect()
            try:
                yield
            finally:
                ray.shutdown()

    def _connect(self) -> None:
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "ERROR",
            "configure_logging": False,
        }
        if self.address is None:
            # cores are bookkeeping and may be shared; the GPUs are those that Ray finds
            cpus = max(1, round(self.slots * self.cpus))
            with _our_signals():
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
            return
        try:
            with _our_signals():
                ray.init(address=self.address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> AutopruneError:
        return AutopruneError(
            f"no Ray cluster answers at executor.address={self.address!r} ({error}); start "
            "one with `ray start --head`, or leave executor.address out for a local one"
        )

    def _fit(
        self, sweep: Sweep, context: TrialContext, folder: Path, *, interrupt: Interrupt
    ) -> None:
        # Serialised here and put once: a worker can then extend its import path before it
        # unpickles the user's classes
        payload = ray.put(cloudpickle.dumps(context))
        adapter = Adapter(sweep, self.slots, interrupt)
        trainable = tune.with_resources(
            tune.with_parameters(
                TrialActor,
                payload=payload,
                folder=str(folder.resolve()),
                code_paths=list(self.code_paths),
            ),
            {"cpu": self.cpus, "gpu": self.gpus},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=adapter,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=trial_name,
                trial_dirname_creator=trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder.resolve()),
                stop=Stopper(adapter, interrupt),
                callbacks=[ProgressCallback(adapter)],
                verbose=0,
            ),
        )
        tuner.fit()
        if adapter.fault is not None:
            raise adapter.fault


@contextmanager
def _our_signals() -> Iterator[None]:
    """Take SIGTERM back from Ray 2.60, whose own handlers end the driver at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _ray_as_we_need_it() -> Iterator[None]:
    """Ray's settings in the environment and the levels of its logs, put back afterwards."""
    # Ray and Tune 2.60 warn of the token that guards the cluster, which is as it should be, and
    # of result files that are switched off here
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray._private")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with environment(ENVIRONMENT):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def this_machine() -> dict[str, float]:
    """The cores that this process may use, and the GPUs, as Ray names them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"CPU": float(cores or 1), "GPU": float(torch.cuda.device_count())}


class TrialActor(tune.Trainable):
    """A slot on a worker: takes one step of a trial at each call, then the next trial."""

    def setup(  # type: ignore[override]  # with_parameters hands these over by keyword
        self, config: dict[str, Any], payload: Any, folder: str, code_paths: Sequence[str]
    ) -> None:
        """Unpack what all trials share, once for this actor's life."""
        sys.path[:0] = [path for path in code_paths if path not in sys.path]
        data = ray.get(payload) if isinstance(payload, ray.ObjectRef) else payload
        self._context: TrialContext = cloudpickle.loads(data)
        self._folder = Path(folder)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial."""
        trial = Trial.from_json(json.loads(new_config["trial"]))
        self._steps: Generator[Progress, None, Observation] = work(
            trial, self._context, self._folder
        )
        return True

    def step(self) -> dict[str, Any]:
        """One stage or epoch; the last result carries the observation."""
        try:
            progress = next(self._steps)
        except StopIteration as end:
            return {"observation": json.dumps(end.value.to_json()), "done": True}
        return {
            "stage": str(progress.stage),
            "epoch": progress.epoch,
            "metrics": json.dumps(dict(progress.metrics)),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: `work` writes a trial's snapshots itself."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: `work` goes on from a trial's last snapshot itself."""
