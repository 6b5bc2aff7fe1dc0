"""Which criterion and which healing leave most accuracy? ``python -m tests.benchmarks.healing``.

Two networks and their data, trained once a seed, cut by each criterion to equal shares of every
group, healed in each way, and judged on val. The parts are run in as many processes as there are
cores and their runs kept in ``--json FILE``; the same command with the same file goes on where it
was broken off. ``--html FILE`` draws them all. ``--quick`` is a run of three minutes on smaller
networks, to see that it works; its figures mean nothing.
"""

import copy
import json
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.space import PruningSpec
from autoprune.orchestration.preparation import load_baseline
from autoprune.orchestration.request import SweepRequest
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.criteria import CRITERIA, Scoring, criterion_of
from autoprune.pruning.distill import Distillation
from autoprune.pruning.graph import trace
from autoprune.pruning.healing import Healing, Recovery
from autoprune.pruning.reconstruct import Reconstruction
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.rounds import Choosing, Rounds
from autoprune.pruning.schedule import Schedule
from autoprune.pruning.surgery import prune
from tests.benchmarks.seeds import interval, options, request

EXPERIMENTS = ("digits_vgg", "digits_resnet20")
RATIOS = (0.5, 0.25, 0.125)
LEFT_OUT = {
    "se_gate": "neither network has squeeze-and-excite gates",
    "lamp": "within one group it ranks units as l2 does",
}
EPOCHS, ROUNDS = 8, 4
USUAL = {"criterion": "l1", "healing": "finetune"}
"""What the others are compared with: the defaults."""
UNTRAINED = ("none", "reconstruct")
"""Criteria are compared by what is left of them after training."""
SMALL = ("model.depth=8", "model.width=8", "baseline.fit.epochs=2")


class Part(NamedTuple):
    """What one process does at a time: one network of one seed, cut by one criterion."""

    experiment: str
    seed: int
    criterion: str


@dataclass(frozen=True)
class Run:
    """One network that was cut and healed: val's accuracy, the unpruned one's, and the seconds of
    a core that healing it took.
    """

    experiment: str
    seed: int
    criterion: str
    healing: str
    ratio: float
    accuracy: float
    unpruned: float
    seconds: float

    @property
    def part(self) -> Part:
        """The part that it is of."""
        return Part(self.experiment, self.seed, self.criterion)


class Mean(NamedTuple):
    """A mean and half of its 95% interval by Student's t; no interval of a single value."""

    value: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """The mean of some values."""
        ends, mean = interval(values), float(np.mean(values))
        return cls(mean, None if ends is None else ends[1] - mean)

    def text(self, digits: int, *, sign: str = "") -> str:
        """For a table."""
        half = "" if self.half is None else f" ± {self.half:.{digits}f}"
        return f"{self.value:{sign}z.{digits}f}{half}"


def healings(epochs: int) -> dict[str, Recovery]:
    """Those that are compared. `longer_finetune` trains for about as long as it takes to fit by
    least squares and to train.
    """
    idle, plan = FitPlan(epochs=0), FitPlan(epochs=epochs)
    fitted, taught = Reconstruction(), Distillation()
    found = (
        Recovery(idle),
        Recovery(idle, reconstruction=fitted),
        Recovery(plan),
        Recovery(plan, schedule=Schedule(rounds=min(ROUNDS, epochs))),
        Recovery(plan, reconstruction=fitted),
        Recovery(plan, distillation=taught),
        Recovery(plan, reconstruction=fitted, distillation=taught),
    )
    longer = Recovery(FitPlan(epochs=epochs * 3 // 2))
    return {recovery.name: recovery for recovery in found} | {"longer_finetune": longer}


def asked(experiment: str, seed: int, folder: str, *, quick: bool) -> SweepRequest:
    """What an experiment's config asks for."""
    words = [f"experiment={experiment}", "executor=inline", f"output={folder}", f"seed={seed}"]
    return request([*words, *(SMALL if quick else ())])


def train(experiment: str, seed: int, folder: str, quick: bool) -> None:
    """Train an unpruned network, which stays in the folder."""
    torch.set_num_threads(1)
    load_baseline(asked(experiment, seed, folder, quick=quick))


def runs(part: Part, ways: Collection[str], folder: str, quick: bool) -> list[Run]:
    """All ratios of one part, healed in these ways."""
    torch.set_num_threads(1)
    wanted = asked(part.experiment, part.seed, folder, quick=quick)
    recoveries = healings(2 if quick else EPOCHS)
    return list(_runs(part, wanted, {name: recoveries[name] for name in ways}))


def _runs(part: Part, wanted: SweepRequest, recoveries: Mapping[str, Recovery]) -> Iterator[Run]:
    unpruned, task = load_baseline(wanted).model, wanted.task
    example, main = task.example(), task.metrics[0].name
    before = evaluate(unpruned, task, "val")[main]
    dependencies = trace(unpruned, example, time_limit_s=60)
    space = build_space(dependencies.groups, Bounds(min_kept=0.04))
    criterion, scoring = criterion_of(part.criterion), Scoring(task, seed=part.seed, batches=8)
    for ratio in RATIOS:
        spec = PruningSpec.of(space.uniform(ratio).widths, criterion=part.criterion)
        cut = prune(
            unpruned,
            example,
            spec,
            criterion=criterion,
            scoring=scoring,
            dependencies=dependencies,
        )
        for name, recovery in recoveries.items():
            start = time.process_time()
            begun = copy.deepcopy(cut)
            healing = Healing(recovery, task, unpruned, begun.recipe.history, seed=part.seed)
            healing.at_once(begun.model)
            rounds = Rounds(healing, Choosing(dependencies, criterion, scoring))
            healed = [begun, *(pruned for pruned, _ in rounds.train(begun))][-1]
            seconds = time.process_time() - start
            after = evaluate(healed.model, task, "val")[main]
            yield Run(*part, name, ratio, after, before, seconds)


def markdown(found: Sequence[Run]) -> str:
    """A network's table: criteria by healings, with the mean of all seeds at each ratio, and half
    of its 95% interval.
    """
    lines = []
    for experiment in dict.fromkeys(run.experiment for run in found):
        own = [run for run in found if run.experiment == experiment]
        whole = Mean.of(list({run.seed: run.unpruned for run in own}.values()))
        ratios = "".join(f" {ratio:g} kept |" for ratio in RATIOS)
        lines += [f"{experiment}, unpruned {whole.text(3)}:", ""]
        lines += [f"| criterion | healing |{ratios}", f"| --- | --- |{' --- |' * len(RATIOS)}"]
        for kind in dict.fromkeys((run.criterion, run.healing) for run in own):
            cells = "".join(f" {_cell(own, *kind, ratio).text(3)} |" for ratio in RATIOS)
            lines.append(f"| {' | '.join(kind)} |{cells}")
        lines.append("")
    trained = [run for run in found if run.healing not in UNTRAINED]
    return "\n".join([*lines, *_instead(trained, "criterion"), "", *_instead(found, "healing")])


def _cell(found: Iterable[Run], criterion: str, healing: str, ratio: float) -> Mean:
    wanted = (criterion, healing, ratio)
    return Mean.of([r.accuracy for r in found if (r.criterion, r.healing, r.ratio) == wanted])


def _instead(found: Sequence[Run], field: Literal["criterion", "healing"]) -> Iterator[str]:
    """Every criterion, or healing, less the usual one, in points of accuracy: pairs that are alike
    in all else, the mean of a seed's, and its interval over seeds. The usual one comes first, with
    its mean accuracy. Seconds are a core's for one run. Nothing where the usual one was left out.
    """
    usual = USUAL[field]
    names = dict.fromkeys(getattr(run, field) for run in found)
    if usual not in names:  # as where --criteria leaves it out
        return
    columns = dict.fromkeys((run.experiment, run.ratio) for run in found)
    by_kind = {(run.part, run.healing, run.ratio): run for run in found}
    yield "".join([f"| instead of {usual} |", *(f" {e}, {r:g} |" for e, r in columns), " s |"])
    yield f"| --- |{' --- |' * len(columns)} --- |"
    for name in [usual, *(name for name in names if name != usual)]:
        own = [run for run in found if getattr(run, field) == name]
        cells = []
        for column in columns:
            here = [run for run in own if (run.experiment, run.ratio) == column]
            if name == usual:
                cells.append(f"{np.mean([run.accuracy for run in here]):.3f}")
                continue
            points = defaultdict(list)
            for run in here:
                pair = replace(run, **{field: usual})
                pair = by_kind[pair.part, pair.healing, pair.ratio]
                points[run.seed].append(100 * (run.accuracy - pair.accuracy))
            means = [float(np.mean(of_seed)) for of_seed in points.values()]
            cells.append(Mean.of(means).text(1, sign="+"))
        seconds = np.mean([run.seconds for run in own])
        yield f"| {' | '.join([name, *cells])} | {seconds:.1f} |"


def figure(found: Sequence[Run]) -> go.Figure:
    """A network a row, a ratio a column: what every criterion and healing get wrong, in percent."""
    experiments = list(dict.fromkeys(run.experiment for run in found))
    criteria = list(dict.fromkeys(run.criterion for run in found))
    ways = list(dict.fromkeys(run.healing for run in found))
    titles = [f"{name}, {ratio:g} kept" for name in experiments for ratio in RATIOS]
    page = make_subplots(
        len(experiments),
        len(RATIOS),
        subplot_titles=titles,
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=0.08,
    )
    for row, experiment in enumerate(experiments, 1):
        own = [run for run in found if run.experiment == experiment]
        whole = 100 * (1 - float(np.mean([run.unpruned for run in own])))
        for column, ratio in enumerate(RATIOS, 1):
            for way in ways:
                means = [_cell(own, criterion, way, ratio) for criterion in criteria]
                page.add_scatter(
                    x=criteria,
                    y=[100 * (1 - mean.value) for mean in means],
                    error_y={"type": "data", "array": [100 * (mean.half or 0) for mean in means]},
                    mode="markers",
                    name=way,
                    legendgroup=way,
                    showlegend=row == column == 1,
                    marker={"color": COLOURS[ways.index(way)]},
                    row=row,
                    col=column,
                )
            page.add_hline(y=whole, line_dash="dot", row=row, col=column)
    page.update_yaxes(type="log", range=[-0.3, 2], tickvals=[0.5, 1, 2, 5, 10, 20, 50, 100])
    page.update_yaxes(title="error on val, %", col=1)
    page.update_layout(template="plotly_white", width=1400, height=900, scattermode="group")
    return page


COLOURS = (
    *("#999999", "#e69f00", "#0072b2", "#56b4e9", "#cc79a7", "#d55e00", "#009e73", "#000000"),
)
"""Okabe and Ito's, told apart by everyone; one a healing."""


def read(path: Path | None) -> list[Run]:
    """The runs of a file, none where there is no file."""
    if path is None or not path.exists():
        return []
    return [Run(**facts) for facts in json.loads(path.read_text())]


def main() -> None:
    """Run the study and print its tables."""
    parser = options(__doc__)
    parser.add_argument("--html", type=Path)
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS)
    usual = [name for name in CRITERIA if name not in LEFT_OUT]
    parser.add_argument("--criteria", nargs="+", default=usual)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    found = read(arguments.json)
    parts = [
        Part(experiment, seed, criterion)
        for experiment in arguments.experiments
        for seed in range(1 if arguments.quick else arguments.seeds)
        for criterion in arguments.criteria
    ]
    done = {(run.part, run.healing) for run in found}
    ways = {part: [n for n in healings(EPOCHS) if (part, n) not in done] for part in parts}
    missing = {part: names for part, names in ways.items() if names}
    spawned = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(arguments.processes, mp_context=spawned) as pool,
    ):
        networks = dict.fromkeys((part.experiment, part.seed) for part in missing)
        for network in [pool.submit(train, *name, folder, arguments.quick) for name in networks]:
            network.result()
        for ended in as_completed(
            pool.submit(runs, part, names, folder, arguments.quick)
            for part, names in missing.items()
        ):
            found += ended.result()
            print(f"{found[-1].part} done", flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps([asdict(run) for run in found], indent=1))
    order = {part: at for at, part in enumerate(parts)}
    found = sorted((r for r in found if r.part in order), key=lambda run: order[run.part])
    print(markdown(found))
    if arguments.html is not None:
        figure(found).write_html(arguments.html)


if __name__ == "__main__":
    main()
