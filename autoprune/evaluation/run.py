"""The stages of a trial, one after the other.

They are a generator: an executor takes one step at a time and may save the snapshot of each,
pause, or go on elsewhere.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from torch import nn

from autoprune.domain.objective import SIZE_METRICS
from autoprune.domain.space import FP32
from autoprune.domain.trial import (
    Measurement,
    Observation,
    Outcome,
    Speedup,
    Stage,
    Trial,
)
from autoprune.evaluation.factoring import factored_where_faster
from autoprune.evaluation.logbook import Logbook, failure_of
from autoprune.evaluation.networks import example_outputs, portable
from autoprune.evaluation.records import Progress, Snapshot, TrialContext
from autoprune.evaluation.thinning import Thinning
from autoprune.measurement.cost import costs
from autoprune.measurement.meter import speed_metrics
from autoprune.measurement.quantise import quantise
from autoprune.measurement.runtimes.int8_network import Int8Network
from autoprune.measurement.runtimes.protocol import torch_threads
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.healing import Healing, Recovery
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.recover import FitState
from autoprune.pruning.rounds import Choosing, Rounds
from autoprune.pruning.sparsity.training import ZerosFirst
from autoprune.pruning.surgery import Pruned, prune


def run_trial(
    trial: Trial,
    context: TrialContext,
    *,
    report: Callable[[Progress], None] | None = None,
    resume: Snapshot | None = None,
) -> Observation:
    """Run every stage of a trial and return what it came to; a fault becomes a Failure.

    `report` hears of every stage and epoch as it ends. `resume` goes on from a snapshot that
    an earlier run of the same trial reported.
    """
    steps = trial_steps(trial, context, resume=resume)
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            observation: Observation = end.value
            return observation
        if report is not None:
            report(progress)


def trial_steps(
    trial: Trial, context: TrialContext, *, resume: Snapshot | None = None
) -> Generator[Progress, None, Observation]:
    """The stages of a trial one step at a time; returns the observation at the end."""
    run = _Run(trial, context, resume)
    stages = run.stages()
    outcome: Outcome
    # Ray sets OMP_NUM_THREADS once for a worker, which then serves trials of other sizes
    with torch_threads(context.threads):
        while True:
            try:
                progress = next(stages)
            except StopIteration as end:
                outcome = end.value
                break
            except Exception as error:  # every fault of user code is an outcome, not a crash
                outcome = failure_of(error, run.log.stage)
                break
            yield progress
    return run.log.observation(outcome)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A network that was cut, how, and how fast that made it."""

    model: nn.Module
    recipe: Recipe
    speedup: Speedup


class _Run:
    """The stages of one trial; `log` is where it is, what it knows, and how long it took."""

    def __init__(self, trial: Trial, context: TrialContext, resume: Snapshot | None) -> None:
        self.trial, self.context, self.resume = trial, context, resume
        self.log = Logbook(trial, context, resume)
        program = None if resume is None else resume.program
        self.int8 = None if program is None else Int8Network(program)

    @property
    def _recovery(self) -> Recovery:
        return self.context.recoveries[self.trial.spec.recovery]

    @property
    def _epochs(self) -> int:
        return self._recovery.epochs

    def _healing(self, recipe: Recipe, unpruned: nn.Module | None = None) -> Healing:
        return Healing(
            self._recovery,
            self.context.task,
            self.context.model if unpruned is None else unpruned,
            recipe.history,
            seed=self.trial.seed,
            step_guard=self.log.guard,
        )

    def _choosing(self) -> Choosing:
        context = self.context
        scoring = context.scoring(self.trial.seed, step_guard=self.log.guard)
        return Choosing(context.dependencies, context.criteria[self.trial.spec.criterion], scoring)

    def stages(self) -> Generator[Progress, None, Measurement]:
        """Every stage in order; returns the measurement."""
        if self.resume is None:
            cut = yield from self._cheap_stages()
            cheap = {*SIZE_METRICS, *self.context.meter.metrics}
            broken = self.context.goal.broken(
                {name: value for name, value in self.log.metrics.items() if name in cheap}
            )
            if broken is not None:
                yield self.log.progress(Stage.PROXY)
                return self.log.measurement(cut.speedup, stopped_by=str(broken))
            yield self._reached(Stage.PROXY, cut)
        else:
            if self.resume.done:
                return self.log.measurement(self.resume.speedup)
            cut = self._rebuilt(self.resume)
            if self._rung(self.resume.epoch) is not None:
                # who decides whether it goes on may not have heard that it got here
                stage = Stage.RECOVER if self.resume.epoch else Stage.PROXY
                yield self._reached(stage, cut, epoch=self.resume.epoch, fit_state=self.resume.fit)
        cut = yield from self._thinned(cut)
        cut = yield from self._recover(cut)
        with self.log.timed(Stage.EVALUATE):
            if self._epochs:  # otherwise the proxy is what the network is worth
                self.log.learn(self._evaluate(self._deployed(cut.model)))
            done = replace(self._snapshot(cut, epoch=self._epochs, outputs=True), done=True)
        yield self.log.progress(Stage.EVALUATE, done)
        return self.log.measurement(cut.speedup)

    def _cheap_stages(self) -> Generator[Progress, None, _Cut]:
        context = self.context
        example = context.task.example()
        with self.log.timed(Stage.PRUNE):
            pruned = self._pruned(context.model)
            recipe = pruned.recipe
            if self.trial.spec.precision == FP32:  # else what it takes is known once quantised
                with self.log.guard():
                    self.log.learn(costs(pruned.model, example))
        yield self.log.progress(Stage.PRUNE)
        model = pruned.model.to(context.device)
        with self.log.timed(Stage.RECALIBRATE):
            self._healing(recipe).at_once(model)
        yield self.log.progress(Stage.RECALIBRATE)
        with self.log.timed(Stage.MEASURE):
            deployed = self._deployed(model)
            if self.int8 is not None:
                with self.log.guard():
                    self.log.learn(costs(self.int8, example))
            speedup = context.meter.measure(deployed, context.model, example)
            self.log.learn(speed_metrics(speedup, context.baseline_ms))
        yield self.log.progress(Stage.MEASURE)
        with self.log.timed(Stage.PROXY):
            proxy = self._evaluate(deployed)
            self.log.learn(proxy | {f"proxy_{name}": value for name, value in proxy.items()})
        return _Cut(model, recipe, speedup)

    def _pruned(self, model: nn.Module) -> Pruned:
        """The baseline, or what `_thinned` trained of it, cut to the trial's widths, on the CPU,
        with the whole recipe.
        """
        context, choosing, spec = self.context, self._choosing(), self.trial.spec
        criterion, removed = choosing.criterion, None
        if model is not context.model:
            criterion, removed = ZerosFirst(criterion), choosing.uneven(context.model, spec.widths)
        pruned = prune(
            model,
            context.task.example(),
            spec,
            criterion=criterion,
            scoring=choosing.scoring,
            dependencies=choosing.dependencies,
            removed=removed,
        )
        return replace(pruned, recipe=replace(pruned.recipe, model=context.model_config))

    def _thinned(self, cut: _Cut) -> Generator[Progress, None, _Cut]:
        """The unpruned network trained towards zeros and cut anew, where the recovery says so.

        The cut of before told the speed, which is a matter of the widths.
        """
        before = self._recovery.epochs_before
        done = 0 if self.resume is None else self.resume.epoch
        if not before or done > before:
            return cut
        with self.log.timed(Stage.RECOVER), self.log.guard():
            thinning = Thinning(self.trial, self.context, cut.model if done else None)
            resume = None if self.resume is None else self.resume.fit
            epochs = thinning.epochs(resume, self.log.guard)
            whole = _Cut(thinning.model, replace(cut.recipe, history=()), cut.speedup)
        while True:
            with self.log.timed(Stage.RECOVER):
                epoch = next(epochs, None)
                if epoch is None:
                    break
                self.log.learn({"train_loss": epoch.loss, **thinning.metrics})
            yield self._reached(Stage.RECOVER, whole, epoch=epoch.number, fit_state=epoch.state)
        with self.log.timed(Stage.RECOVER):
            unpruned = portable(thinning.model)
            pruned = self._pruned(unpruned)
            model = pruned.model.to(self.context.device)
            self._healing(pruned.recipe, unpruned).at_once(model)
        cut = replace(cut, model=model, recipe=pruned.recipe)
        if thinning.low_rank and self.trial.spec.precision == FP32:
            with self.log.timed(Stage.MEASURE):
                cut = self._factored(cut)
        with self.log.timed(Stage.RECOVER):
            found = self._evaluate(self._deployed(cut.model))
            self.log.learn(found | {f"sparsity_{name}": value for name, value in found.items()})
        return cut

    def _factored(self, cut: _Cut) -> _Cut:
        """The network with layers as two where that is faster, measured anew where one is."""
        context = self.context
        model, factors = factored_where_faster(cut.model, context)
        self.log.learn({"sparsity_factored": len(factors)})
        if not factors:
            return cut
        example = context.task.example()
        with self.log.guard():
            self.log.learn(costs(model, example))
        speedup = context.meter.measure(model, context.model, example)
        self.log.learn(speed_metrics(speedup, context.baseline_ms))
        return _Cut(model.to(context.device), replace(cut.recipe, factors=factors), speedup)

    def _rebuilt(self, snapshot: Snapshot) -> _Cut:
        model = rebuild(snapshot.recipe, snapshot.state_dict, model=self.context.model)
        return _Cut(model.to(self.context.device), snapshot.recipe, snapshot.speedup)

    def _recover(self, cut: _Cut) -> Generator[Progress, None, _Cut]:
        """Train; returns the network of the last round, which may have other units."""
        before = self._recovery.epochs_before
        done = 0 if self.resume is None else max(self.resume.epoch - before, 0)
        rounds = Rounds(self._healing(cut.recipe), self._choosing(), early=self.context.early)
        epochs = rounds.train(
            Pruned(cut.model, cut.recipe),
            epoch=done,
            state=self.resume.fit if self.resume is not None and done else None,
        )
        while True:
            with self.log.timed(Stage.RECOVER):
                trained = next(epochs, None)
                if trained is None:
                    return cut
                pruned, epoch = trained
                cut = _Cut(pruned.model, pruned.recipe, cut.speedup)
                self.log.learn({"train_loss": epoch.loss})
                number = before + epoch.number
                if number < self._epochs:
                    counts = self._rung(number) is not None
                    self.log.learn(
                        self._evaluate(self._deployed(cut.model) if counts else cut.model)
                    )
            yield self._reached(Stage.RECOVER, cut, epoch=number, fit_state=epoch.state)

    def _rung(self, epoch: int) -> int | None:
        """The rung of the ladder after so many epochs, where there is one below the top.

        Rungs count the epochs after the cut: before it there is nothing to compare.
        """
        rungs, before = self.context.rungs, self._recovery.epochs_before
        after = max(epoch - before, 0)
        if after not in rungs or 0 < epoch <= before or epoch >= self._epochs:
            return None
        return rungs.index(after)

    def _reached(
        self, stage: Stage, cut: _Cut, *, epoch: int = 0, fit_state: FitState | None = None
    ) -> Progress:
        """An epoch is over, or all before the first: what to go on from, and what it is worth."""
        if epoch and fit_state is None:  # a task that trains by itself has no state to go on from
            return self.log.progress(stage, epoch=epoch)
        rung = self._rung(epoch)
        if rung is None:
            snapshot = self._snapshot(cut, epoch=epoch, fit_state=fit_state) if epoch else None
            return self.log.progress(stage, snapshot, epoch=epoch)
        snapshot = self._snapshot(cut, epoch=epoch, fit_state=fit_state, outputs=True)
        worth = self.log.observation(self.log.measurement(cut.speedup), rung=rung)
        return self.log.progress(stage, snapshot, epoch=epoch, worth=worth)

    def _deployed(self, model: nn.Module) -> nn.Module:
        """What the trial is about: the network as it is now, in the precision of the spec."""
        if self.trial.spec.precision == FP32:
            return model
        batches = self.context.calibration_batches
        with self.log.guard():
            self.int8 = quantise(model, self.context.task, batches=batches, seed=self.trial.seed)
        return self.int8

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        return evaluate(model, self.context.task, "val", step_guard=self.log.guard)

    def _snapshot(
        self,
        cut: _Cut,
        *,
        epoch: int,
        fit_state: FitState | None = None,
        outputs: bool = False,
    ) -> Snapshot:
        found: tuple[torch.Tensor, ...] = ()
        program = None
        if outputs:
            network = cut.model if self.int8 is None else self.int8
            with self.log.guard():
                found = example_outputs(portable(network), self.context.task)
            program = None if self.int8 is None else self.int8.program
        return Snapshot(
            cut.recipe,
            cut.model.state_dict(),
            dict(self.log.metrics),
            cut.speedup,
            seconds=dict(self.log.seconds),
            epoch=epoch,
            fit=fit_state,
            outputs=found,
            program=program,
        )
