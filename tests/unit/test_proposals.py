import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Measurement, Observation, Trial, trial_seed
from autoprune.orchestration.proposals import Proposals, ReplayError, saved_states
from autoprune.orchestration.record import Asked, Event, Told
from tests.sweeps import make_space

SPACE = make_space({"a": 32, "b": 64})
GOOD = Measurement({"accuracy": 0.97, "speedup": 2.0})


@dataclass
class Notes:
    """A searcher that notes in which order it is called, and from which thread."""

    calls: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    pause: threading.Event | None = None
    spec: object = None

    def ask(self, number: int) -> PruningSpec:
        self.calls.append(f"ask {number}")
        self.threads.add(threading.current_thread().name)
        if self.pause is not None:
            self.pause.wait()
        return self.spec or SPACE.uniform(0.9 - 0.05 * number)  # type: ignore[return-value]

    def tell(self, observation: Observation) -> None:
        self.calls.append(f"tell {observation.trial.number}")
        if observation.trial.number == 13:
            raise RuntimeError("unlucky")


@dataclass
class Keeps(Notes):
    """One with a state: how often it was called."""

    def save(self, folder: Path) -> None:
        (folder / "calls.json").write_text(json.dumps(self.calls))

    def load(self, folder: Path) -> None:
        self.calls = json.loads((folder / "calls.json").read_text())

    @property
    def curves(self) -> dict[str, float]:
        return {"calls": float(len(self.calls))}


@contextmanager
def proposing(searcher: object, **options: object) -> Iterator[Proposals]:
    proposals = Proposals(searcher, SPACE, **options)  # type: ignore[arg-type]
    yield proposals
    proposals.close()


def told(number: int) -> Observation:
    return Observation(Trial(number, SPACE.uniform(0.9 - 0.05 * number), number), GOOD)


def asked(proposals: Proposals, number: int) -> Trial:
    return proposals.ask(number).trial.result(timeout=10)


def test_calls_are_carried_out_in_order_in_a_thread_of_their_own() -> None:
    searcher = Notes(pause=threading.Event())
    with proposing(searcher, seed=7) as proposals:
        first = proposals.ask(0)
        proposals.tell(told(5))
        second = proposals.ask(1)
        assert not first.trial.done(), "a slow searcher keeps nobody waiting"
        searcher.pause.set()
        assert first.trial.result(timeout=10) == Trial(0, SPACE.uniform(0.9), trial_seed(7, 0))
        assert (first.heard, second.heard) == (0, 1)
    assert searcher.calls == ["ask 0", "tell 5", "ask 1"]
    assert searcher.threads == {"searcher"}


def test_it_works_inside_the_guard() -> None:
    inside: list[str] = []
    searcher = Notes()

    @contextmanager
    def guard() -> Iterator[None]:
        inside.append("in")
        yield
        inside.append(f"out after {searcher.calls[-1]}")

    with proposing(searcher, guard=guard) as proposals:
        asked(proposals, 0)
        proposals.tell(told(0))
    assert inside == ["in", "out after ask 0", "in", "out after tell 0"]


def test_what_comes_first_is_not_asked_for_and_not_repeated() -> None:
    searcher = Notes(spec=SPACE.uniform(0.5))
    first = [SPACE.uniform(ratio) for ratio in (0.5, 0.75, 0.5, 0.25)]
    with proposing(searcher, first=first) as proposals:
        specs = [asked(proposals, number).spec for number in range(5)]
    assert specs[:3] == [first[0], first[1], first[3]]
    assert searcher.calls == ["ask 3", "ask 4"]
    assert len(set(specs)) == 5, "the search asked for the first one again, and again"
    SPACE.check(specs[4])


def test_what_the_searcher_raises_comes_out() -> None:
    with proposing(Notes(spec="half")) as proposals:
        broken = proposals.ask(0).trial
        with pytest.raises(AutopruneError, match="the searcher proposed 'half' for trial 0; `ask`"):
            broken.result(timeout=10)
    with proposing(Notes(spec=PruningSpec.of({"c": 1}))) as proposals:
        broken = proposals.ask(0).trial
        with pytest.raises(AutopruneError, match="the spec and the space differ"):
            broken.result(timeout=10)
    with proposing(Notes(pause=3)) as proposals:  # type: ignore[arg-type]
        broken = proposals.ask(4).trial
        with pytest.raises(AutopruneError, match="Notes, asked for trial 4, raised AttributeError"):
            broken.result(timeout=10)
    proposals = Proposals(Notes(), SPACE)
    proposals.tell(told(13))
    with pytest.raises(
        AutopruneError, match=r"Notes, told of trial 13, raised RuntimeError: unlucky \(.*line \d+"
    ):
        proposals.close()
    searcher = Notes(pause=threading.Event())
    proposals = Proposals(searcher, SPACE)
    proposals.ask(0)
    for number in (13, 14):
        proposals.tell(told(number))
    searcher.pause.set()
    with pytest.raises(AutopruneError, match="unlucky"):
        proposals.close()
    with pytest.raises(AutopruneError, match="unlucky"):
        proposals.ask(16)


def events(*words: str) -> list[Event]:
    """Like ``ask 0``, ``tell 0`` or ``ask 2 heard 1``."""
    found: list[Event] = []
    for word in words:
        kind, number, *rest = word.split()
        if kind == "tell":
            found.append(Told(told(int(number)), 0.0))
        else:
            trial = Trial(int(number), told(int(number)).trial.spec, trial_seed(0, int(number)))
            found.append(Asked(trial, 0.0, int(rest[1]) if rest else None))
    return found


def test_a_replay_goes_in_the_order_of_the_searcher() -> None:
    searcher = Notes()
    with proposing(searcher) as proposals:
        proposals.replay(events("ask 0", "ask 1", "tell 1", "tell 0", "ask 2 heard 1", "ask 3"))
    assert searcher.calls == ["ask 0", "ask 1", "tell 1", "ask 2", "tell 0", "ask 3"]
    assert proposals.fault == ""


def test_one_that_proposes_something_else_on_replay_goes_on_from_what_was_run() -> None:
    searcher = Notes(spec=SPACE.uniform(0.1))
    with proposing(searcher) as proposals:
        proposals.replay(events("ask 0", "tell 0", "ask 1", "tell 1"))
        assert asked(proposals, 2).spec == SPACE.uniform(0.1)
    assert proposals.fault.startswith("trial 0 is not what the searcher proposes on replay")
    assert searcher.calls == ["ask 0", "tell 0", "ask 1", "tell 1", "ask 2"]


def test_a_state_is_saved_and_only_the_rest_replayed(tmp_path: Path) -> None:
    history = events("ask 0", "ask 1", "tell 0")
    with proposing(Keeps(), folder=tmp_path) as proposals:
        proposals.replay(history)
    assert proposals.curves == {"calls": 3.0}
    (state,) = saved_states(tmp_path / "searcher")
    counts = json.loads((state / "counts.json").read_text())
    assert (counts["asked"], counts["told"]) == (2, 1)
    # two more calls, the second of which was not saved; then it was killed
    searcher = Keeps()
    with proposing(searcher, folder=tmp_path) as proposals:
        proposals.replay([*history, *events("ask 2", "ask 3")])
        assert proposals.curves == {"calls": 3.0}, "they are those of the state"
        assert proposals.ask(4).heard == 1
    assert searcher.calls == ["ask 0", "ask 1", "tell 0", "ask 2", "ask 3", "ask 4"]


def test_what_was_proposed_and_not_journaled_is_handed_out_again(tmp_path: Path) -> None:
    with proposing(Keeps(), folder=tmp_path) as proposals:
        proposals.replay(events("ask 0"))
        lost = asked(proposals, 1)
        proposals.tell(told(0))
    searcher = Keeps(spec=SPACE.uniform(0.1))
    with proposing(searcher, folder=tmp_path) as proposals:
        proposals.replay(events("ask 0", "tell 0"))
        assert asked(proposals, 1) == lost
        assert asked(proposals, 2).spec == SPACE.uniform(0.1)
    assert searcher.calls == ["ask 0", "ask 1", "tell 0", "ask 2"]


def test_one_with_a_state_may_propose_something_else_on_replay(tmp_path: Path) -> None:
    with proposing(Keeps(spec=SPACE.uniform(0.1)), folder=tmp_path) as proposals:
        proposals.replay(events("ask 0"))
    assert proposals.fault == ""


def test_a_state_is_saved_once_there_is_nothing_more_to_learn(tmp_path: Path) -> None:
    searcher = Keeps(pause=threading.Event())
    with proposing(searcher, folder=tmp_path) as proposals:
        proposals.ask(0)
        for number in range(3):
            proposals.tell(told(number))
        searcher.pause.set()
    (state,) = saved_states(tmp_path / "searcher")
    assert json.loads((state / "calls.json").read_text())[-1] == "tell 2"


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    with proposing(Keeps(), folder=tmp_path) as proposals:
        proposals.replay(events("ask 0", "tell 0"))
    (state,) = saved_states(tmp_path / "searcher")
    (state / "calls.json").write_text("[")
    again = Proposals(Keeps(), SPACE, folder=tmp_path)
    with pytest.raises(ReplayError, match=r"0001: the searcher cannot be restored \(JSOND"):
        again.replay(events("ask 0", "tell 0"))


def test_a_state_that_knows_more_than_the_journal_is_refused(tmp_path: Path) -> None:
    with proposing(Keeps(), folder=tmp_path) as proposals:
        proposals.replay(events("ask 0", "tell 0", "ask 1", "tell 1"))
    again = Proposals(Keeps(), SPACE, folder=tmp_path)
    with pytest.raises(ReplayError, match=r"heard of 2 outcomes, and the journal holds 1\); del"):
        again.replay(events("ask 0", "tell 0"))


def test_a_state_that_cannot_be_saved_is_told(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("no folder")
    with proposing(Keeps(), folder=place) as proposals:
        proposals.tell(told(0))
    assert "is not up to date ([Errno 20] Not a directory" in proposals.fault

    class Full(Keeps):
        def save(self, folder: Path) -> None:
            raise RuntimeError("file write failed, as torch.save has it")

    with proposing(Full(), folder=tmp_path) as proposals:
        proposals.tell(told(0))
        proposals.settle()
        assert "is not up to date (file write failed" in proposals.fault
        asked(proposals, 0)
