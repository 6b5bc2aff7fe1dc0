"""The agents' environment, their rewards, and what the searcher does beyond the contract."""

import json
import math
import tomllib
import warnings
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import autoprune_agents
import gymnasium
import numpy as np
import pytest
import torch
import yaml
from autoprune_agents import (
    ENVIRONMENT,
    AccuracyUnderLatency,
    AmcError,
    AmcLatency,
    Scalarised,
    agent,
    factories,
)
from autoprune_agents.learner import AgentLearner
from autoprune_agents.learning import LEARNING
from autoprune_agents.outcomes import FAILED, Outcomes
from autoprune_agents.rewards import weights
from autoprune_agents.searcher import AgentSearcher
from autoprune_agents.walk import Walk
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3 import SAC
from stable_baselines3.common.env_checker import check_env as check_baselines
from stable_baselines3.common.env_util import make_vec_env

from autoprune.domain.errors import AutopruneError
from autoprune.domain.latency import LatencyModel, Timing
from autoprune.domain.objective import Constraint, Direction, Goal, Objective
from autoprune.domain.protocols import Learner, Stateful
from autoprune.domain.space import Axis, Group, SearchSpace
from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Stage,
    Trial,
    trial_seed,
)
from autoprune.measurement.runtimes.protocol import torch_threads
from autoprune.problems import known_problem
from autoprune.searchers import RandomSearcher, named
from autoprune.searchers.named import build_searcher, searcher_named
from autoprune.settings.compose import compose_config, plain
from autoprune.settings.targets import build_target
from tests.contracts.searcher_contract import GOAL, OBJECTIVES, SPACE, measure

PROBLEM = known_problem("coupled", 8)
QUICK: dict[str, Any] = {"warm_up": 4, "gradient_steps": 2, "options": {"batch_size": 16}}
ROOT = Path(__file__).parents[2]


def environment(**arguments: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(ENVIRONMENT, problem=PROBLEM, **arguments)


def episode(env: gymnasium.Env[Any, Any], action: float) -> tuple[list[Any], list[float], Any]:
    """Its observations, rewards, and the last info, of one action throughout."""
    seen, rewards, over = [env.reset(seed=1)[0]], [], False
    while not over:
        observation, reward, over, _, info = env.step(np.array([action], dtype=np.float32))
        seen.append(observation)
        rewards.append(float(reward))
    return seen, rewards, info


def searching(searcher: Any, trials: int, *, begin: int = 0, problem: Any = PROBLEM) -> list[Any]:
    """Ask and tell; the observations."""
    found = []
    for number in range(begin, begin + trials):
        trial = Trial(number, searcher.ask(number), trial_seed(0, number))
        found.append(problem.observe(trial))
        searcher.tell(found[-1])
    return found


# The environment


@pytest.mark.parametrize("wall", [None, 0.4])
def test_both_checkers_pass_it_without_a_warning(wall: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_gymnasium(environment(wall=wall).unwrapped, skip_render_check=True)
        check_baselines(environment(wall=wall).unwrapped)


def test_anybodys_agent_trains_on_it() -> None:
    vector = make_vec_env(environment, n_envs=2)
    model = SAC("MlpPolicy", vector, learning_starts=32, batch_size=16, device="cpu", seed=0)
    before = [p.clone() for p in model.actor.parameters()]
    model.learn(200)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.actor.parameters(), strict=True))


def test_it_runs_as_a_vector_environment() -> None:
    vector = gymnasium.make_vec(ENVIRONMENT, num_envs=3, problem=PROBLEM)
    observations, _ = vector.reset(seed=0)
    assert observations.shape == (3, environment().observation_space.shape[0])
    actions = np.zeros((3, 1), dtype=np.float32)
    overs = [vector.step(actions)[2].all() for _ in range(len(PROBLEM.space.options))]
    assert overs == [False] * (len(overs) - 1) + [True]


def test_an_episode_walks_every_group_and_is_rewarded_at_its_end() -> None:
    seen, rewards, info = episode(environment(preference={"accuracy": 1, "speedup": 1}), 0.0)
    assert len(rewards) == len(PROBLEM.space.options) == 8
    assert rewards[:-1] == [0.0] * 7
    assert info["spec"] == PROBLEM.space.uniform(17 / 32).to_json()
    true = PROBLEM.true(PROBLEM.space.uniform(17 / 32))
    assert info["metrics"] == true.metrics
    even = np.array([[0.5, 0.5]])
    units = np.array([0.05 * 0.9, np.log(2)])
    expected = Scalarised()(Outcomes.of(PROBLEM.goal, [true], unit_M=units), even)[0]
    assert rewards[-1] == pytest.approx(expected)
    for step, observation in enumerate(seen[:-1]):
        assert observation[:8].tolist() == np.eye(8)[step].tolist()


def test_features_are_where_the_table_says() -> None:
    space = SearchSpace(
        (Axis(Group("a", "channels", 64, 8), 8, 64), Axis(Group("b", "heads", 4), 1, 4)),
        criteria=("l1", "l2"),
    )
    latency = LatencyModel.fit(space.groups, [Timing({"a": 8}, 0.5), Timing({"b": 1}, 0.6)])
    walk = Walk(space, latency, objectives=2)
    indices = [3, 1]
    row = walk.observation(indices, [0.25, 0.75])
    index, kind, facts, times, last, kept, preference = np.split(row, [3, 6, 8, 11, 12, 15])
    assert index.tolist() == [0, 0, 1]
    assert kind.tolist() == [0, 0, 1]
    assert facts.tolist() == [0, 0]
    saved = 1 - latency.share({"a": 32, "b": 2})
    assert times == pytest.approx([saved, 0, 0], abs=1e-6)
    assert last == pytest.approx([1 / 3])
    assert kept == pytest.approx([3 / 7, 1 / 3, 1.0])
    assert preference.tolist() == [0.25, 0.75]
    first = walk.observation([], [0.25, 0.75])
    assert first[6:8] == pytest.approx([1.0, 1 / 8])


def test_the_executed_action_is_reported_not_the_raw_one() -> None:
    env = environment()
    env.reset(seed=0)
    *_, info = env.step(np.array([0.03], dtype=np.float32))
    widths = PROBLEM.space.axes[0].widths
    assert info["kept"] in widths
    assert info["action"] == 2 * (info["kept"] - widths[0]) / (widths[-1] - widths[0]) - 1
    assert info["action"] != 0.03


def test_the_wall_keeps_the_budget_within_reach() -> None:
    latency = LatencyModel.fit(
        PROBLEM.space.groups,
        [
            Timing(spec.widths, 1 / PROBLEM.true(spec).metrics["speedup"])
            for spec in map(PROBLEM.space.sample, map(np.random.default_rng, range(60)))
        ],
    )
    *_, free = episode(environment(latency=latency), 1.0)
    *_, info = episode(environment(latency=latency, wall=0.4), 1.0)
    assert latency.share(free["spec"]["kept"]) == pytest.approx(1.0, rel=0.05)
    assert 0.3 < latency.share(info["spec"]["kept"]) <= 0.4


def test_every_criterion_and_recovery_is_within_reach() -> None:
    space = replace(SPACE, recoveries=("finetune", "none", "distil"))
    walk = Walk(space, LatencyModel.fit(space.groups, []), objectives=2)
    assert len(walk) == 5
    assert {walk.executed([0, 0, 0, 0], action) for action in (-1, 0, 1)} == {0, 1, 2}
    walk = Walk(replace(space, precisions=("fp32", "int8")), walk.latency, objectives=2)
    assert len(walk) == 6
    assert {walk.executed([0, 0, 0, 0, 0], action) for action in (-1, 1)} == {0, 1}


def test_a_preference_of_an_episode() -> None:
    env = environment()
    observation, _ = env.reset(options={"preference": {"speedup": 2.0}})
    assert observation[-2:].tolist() == [0, 1]
    drawn = [env.reset(seed=seed)[0][-2:] for seed in range(8)]
    assert np.ptp([one[0] for one in drawn]) > 0.3
    assert [one.sum() for one in drawn] == pytest.approx([1.0] * 8)


def test_a_failed_trial_is_reported_and_rewarded_as_documented() -> None:
    class Failing:
        space, goal = PROBLEM.space, PROBLEM.goal

        def observe(self, trial: Trial) -> Observation:
            return Observation(trial, Failure(Stage.RECOVER, Cause.NAN_LOSS, "NaN"))

    env = gymnasium.make(ENVIRONMENT, problem=Failing(), preference={"speedup": 1.0})
    _, rewards, info = episode(env, 0.0)
    assert info["failure"] == "NaN loss"
    assert rewards[-1] == pytest.approx(FAILED / 2 + 0.05 * 2 * FAILED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "scalarized"}, "reward 'scalarized' is not known; did you mean 'scalarised'"),
        ({"preference": {"speed": 1.0}}, "preference for an objective 'speed' is not known; did "),
        ({"preference": {"speedup": -1.0}}, r"weights of at least 0 with one above it; weigh \["),
        ({"wall": 1.5}, r"the wall is at 1.5 of the baseline's latency; choose it in \(0, 1\]"),
        ({"wall": "a"}, r"the wall is at 'a' of the baseline's latency; choose it in \(0, 1\]"),
        ({"reward": None}, "reward None is not known; choose from"),
        ({"reward": {}}, "reward {} is not known; choose from"),
        ({"preference": {"speedup": "fast"}}, "has a weight that is no number; weigh"),
        ({"preference": [1, 2]}, r"the preference is \[1, 2\]; give a weight by objective, such"),
    ],
)
def test_bad_arguments_of_the_environment(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        environment(**arguments)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([math.nan], r"an action is NaN; give one in \[-1, 1\]"),
        ([0.1, 0.2], r"an action is one number in \[-1, 1\], got \[0.1, 0.2\]"),
    ],
)
def test_bad_actions(action: list[float], message: str) -> None:
    env = environment().unwrapped
    env.reset(seed=0)
    with pytest.raises(AutopruneError, match=message):
        env.step(action)


def test_bad_options_of_an_episode() -> None:
    env = environment()
    with pytest.raises(AutopruneError, match="option of reset 'prefernce' is not known; did you"):
        env.reset(options={"prefernce": {"speedup": 1.0}})
    assert env.reset(options={"preference": None})[0][-2:].sum() == pytest.approx(1.0)


def test_a_step_too_many() -> None:
    env = environment().unwrapped
    episode(env, 0.0)
    with pytest.raises(AutopruneError, match=r"the episode is over after 8 steps; call reset\(\)"):
        env.step(np.zeros(1))


# Rewards


def outcomes(*measured: dict[str, float], constraints: tuple[Constraint, ...] = ()) -> Outcomes:
    goal = Goal(OBJECTIVES, (0.5, 1.0), constraints)
    return Outcomes.of(goal, map(Measurement, measured), unit_M=np.array([0.4, np.log(4.0)]))


def test_gains_are_told_in_units_from_the_reference() -> None:
    found = outcomes({"accuracy": 0.7, "speedup": 2.0}, {"accuracy": 0.1, "speedup": 0.5})
    assert found.gain_NM[0] == pytest.approx([0.5, 0.5])
    assert found.gain_NM[1] == pytest.approx([-np.log(5) / 4, -np.log(3) / 4])
    assert found.error_N == pytest.approx([0.3, 0.9])
    assert found.share_N == pytest.approx([0.5, 2.0])


def test_gains_are_in_units_of_the_best_of_use() -> None:
    measured = [(0.7, 2.0), (0.6, 4.0), (0.4, 64.0)]
    found = Outcomes.of(
        Goal(OBJECTIVES, (0.5, 1.0)),
        [Measurement({"accuracy": a, "speedup": s}) for a, s in measured],
    )
    assert found.gain_NM == pytest.approx(np.array([[1, 0.5], [0.5, 1], [-np.log(3) / 4, 3]]))


def test_less_is_more_where_the_objective_says_so() -> None:
    goal = Goal((Objective("loss", Direction.MIN), Objective("macs", Direction.MIN)), (2.0, 100.0))
    found = Outcomes.of(goal, [Measurement({"loss": 1.9, "macs": 50.0, "speedup": 1.0})])
    assert found.gain_NM == pytest.approx(np.array([[1.0, 1.0]]))
    assert found.error_N == pytest.approx([1.9])


def test_what_lacks_an_objective_counts_as_failed() -> None:
    stopped = Measurement({"speedup": 1.2}, stopped_by="speedup >= 2")
    failed = Failure(Stage.PRUNE, Cause.GRAPH, "no")
    found = Outcomes.of(GOAL, [stopped, failed, measure(SPACE.uniform(0.5))])
    assert (found.gain_NM[:2] == FAILED).all()
    assert (found.gain_NM[2] > FAILED).all()


def test_broken_constraints_are_subtracted_in_shares_of_their_bound() -> None:
    point = {"accuracy": 0.7, "speedup": 2.0}
    even = np.full((1, 2), 0.5)
    free, bound = outcomes(point), outcomes(point, constraints=(Constraint("speedup", low=4.0),))
    assert Scalarised()(free, even) - Scalarised()(bound, even) == pytest.approx([0.5])


def test_a_preference_picks_its_place_on_a_front() -> None:
    found = outcomes(
        *({"accuracy": 0.5 + 0.4 * x, "speedup": 4 ** (1 - x)} for x in (0.2, 0.5, 0.8))
    )
    for best, weight in enumerate((0.2, 0.5, 0.8)):
        rewards = Scalarised()(found, np.tile([weight, 1 - weight], (3, 1)))
        assert int(rewards.argmax()) == best


def test_the_other_rewards_are_what_they_say() -> None:
    found = outcomes({"accuracy": 0.7, "speedup": 2.0}, {"accuracy": 0.9, "speedup": 1.0})
    none = np.zeros((2, 2))
    assert AmcError()(found, none) == pytest.approx([-0.3, -0.1])
    assert AmcLatency()(found, none) == pytest.approx([-0.3 * np.log(5e7), -0.1 * np.log(1e8)])
    under = AccuracyUnderLatency(budget=0.5, price=2.0)(found, none)
    assert under == pytest.approx([0.5, 1.0 - 2.0 * np.log(2)])


def test_a_budget_that_is_none() -> None:
    with pytest.raises(AutopruneError, match=r"a latency budget of 0.0 .* choose it in \(0, 1\]"):
        AccuracyUnderLatency(budget=0.0)


def test_weights_sum_to_one() -> None:
    assert weights(GOAL, {"speedup": 3.0, "accuracy": 1.0}).tolist() == [0.25, 0.75]


# The searcher


@pytest.mark.parametrize("algorithm", sorted(LEARNING))
def test_a_restored_agent_goes_on_as_the_saved_one(algorithm: str, tmp_path: Path) -> None:
    build = partial(
        agent, PROBLEM.space, PROBLEM.goal, 3, learning={**QUICK, "algorithm": algorithm}
    )
    one, other = build(), build()
    searching(one, 20)
    pending = Trial(20, one.ask(20), 20)
    one.save(tmp_path)
    other.load(tmp_path)
    parameters = [s._learner.model.get_parameters()["policy"] for s in (one, other)]
    assert all(torch.equal(value, parameters[1][name]) for name, value in parameters[0].items())
    for name in ("observations", "actions"):
        arrays = [getattr(s._learner.buffer, name) for s in (one, other)]
        assert np.array_equal(*arrays)
        assert arrays[0].any()
    assert other.curves == one.curves
    for searcher in (one, other):
        searcher.tell(PROBLEM.observe(pending))
    assert searching(one, 6, begin=21) == searching(other, 6, begin=21)
    assert one.curves == other.curves


def test_the_actor_may_have_a_rate_of_its_own(tmp_path: Path) -> None:
    learning = {**QUICK, "algorithm": "ddpg", "actor_learning_rate": 1e-4}
    searcher, restored = (agent(PROBLEM.space, PROBLEM.goal, 0, learning=learning) for _ in "ab")
    searching(searcher, 6)
    searcher.save(tmp_path)
    restored.load(tmp_path)
    for one in (searcher, restored):
        model = one._learner.model
        rates = [net.optimizer.param_groups[0]["lr"] for net in (model.actor, model.critic)]
        assert rates == [1e-4, 1e-3]


def test_what_was_saved_holds_no_code(tmp_path: Path) -> None:
    searcher = agent(PROBLEM.space, PROBLEM.goal, 0, learning=QUICK)
    searching(searcher, 6)
    searcher.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.json", "agent.pt"]
    json.loads((tmp_path / "agent.json").read_text())
    torch.load(tmp_path / "agent.pt", weights_only=True)


@pytest.mark.parametrize("algorithm", sorted(LEARNING))
def test_global_randomness_and_threads_are_left_alone(algorithm: str) -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    asked = agent(SPACE, GOAL, 0, learning={**QUICK, "algorithm": algorithm})
    with torch_threads(2):
        searching(asked, 6, problem=Tiny())
        assert torch.get_num_threads() == 2
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


class Tiny:
    """The analytic problem of the contract."""

    space, goal = SPACE, GOAL

    def observe(self, trial: Trial) -> Observation:
        return Observation(trial, measure(trial.spec))


def test_what_is_told_again_replaces_what_was_told() -> None:
    searcher = agent(SPACE, GOAL, 0, learning={**QUICK, "warm_up": 100})
    spec = SPACE.uniform(0.5)
    for rung, outcome in ((0, Failure(Stage.RECOVER, Cause.NAN_LOSS, "NaN")), (1, measure(spec))):
        searcher.tell(Observation(Trial(0, spec, 0), outcome, rung=rung))
        assert len(searcher._learner.buffer.outcomes) == 1
    assert (searcher._learner.buffer.outcomes.gain_NM > FAILED).all()


def test_a_full_memory_forgets_the_oldest() -> None:
    searcher = agent(SPACE, GOAL, 0, learning={**QUICK, "memory": 3})
    told = searching(searcher, 5, problem=Tiny())
    kept = Outcomes.of(GOAL, [told[n].outcome for n in (3, 4, 2)])
    assert searcher._learner.buffer.outcomes.gain_NM == pytest.approx(kept.gain_NM)


def test_strangers_trials_are_the_warm_up() -> None:
    searcher = agent(SPACE, GOAL, 0, learning=QUICK)
    for number in range(3):
        searcher.tell(Tiny().observe(Trial(number, SPACE.uniform(0.2 + 0.2 * number), 0)))
    assert searcher.curves == {}
    searcher.tell(Tiny().observe(Trial(3, SPACE.uniform(0.9), 0)))
    assert {"critic_loss", "entropy", "entropy_coefficient"} <= set(searcher.curves)
    assert "episode_reward" not in searcher.curves
    searching(searcher, 1, begin=4, problem=Tiny())
    assert "episode_reward" in searcher.curves


def test_the_latency_model_learns_from_trials() -> None:
    searcher = agent(PROBLEM.space, PROBLEM.goal, 0, learning={**QUICK, "warm_up": 1000})
    spec = PROBLEM.space.uniform(0.3)
    true = 1 / PROBLEM.true(spec).metrics["speedup"]
    before = abs(searcher._memory.walk.latency.share(spec.widths) - true)
    searching(searcher, 16)
    assert abs(searcher._memory.walk.latency.share(spec.widths) - true) < before / 4


def test_preferences_cover_the_front_evenly() -> None:
    searcher = agent(PROBLEM.space, PROBLEM.goal, 0, learning=QUICK)
    found = np.array([searcher._preference(episode) for episode in range(32)])
    assert found.sum(axis=1) == pytest.approx(np.ones(32))
    assert np.diff(np.sort(found[:, 0])).max() < 0.1


def test_the_wall_holds_in_the_searcher() -> None:
    searcher = agent(PROBLEM.space, PROBLEM.goal, 0, learning=QUICK, aim={"wall": 0.4})
    for number in range(8):
        spec = searcher.ask(number)
        assert searcher._memory.walk.latency.share(spec.widths) <= 0.4
        searcher.tell(PROBLEM.observe(Trial(number, spec, 0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning": {"algorithm": "sca"}}, "algorithm of an agent 'sca' is not known; did you"),
        ({"learning": {"warmup": 1}}, "setting learning of an agent 'warmup' is not known; did"),
        ({"aim": {"rewards": 1}}, "setting aim of an agent 'rewards' is not known; did you mean"),
        ({"aim": {"reward": "amc_eror"}}, "reward 'amc_eror' is not known; did you mean"),
        ({"aim": {"preference": {"acuracy": 1}}}, "did you mean 'accuracy'"),
        ({"learning": {"warm_up": 0}}, "warm_up of an agent is 0; choose 1 or more"),
        ({"learning": {"options": {"batch_size": 0}}}, "batch_size of an agent is 0; choose a wh"),
        ({"learning": {"actor_learning_rate": 0.0}}, "actor_learning_rate of an agent is 0.0; ch"),
        ({"learning": {"decay": 0.0}}, r"decay of an agent is 0.0; choose it in \(0, 1\]"),
        (
            {"learning": {"options": {"taw": 1}}},
            "algorithm 'sac' refuses .*see stable_baselines3.SAC",
        ),
    ],
)
def test_bad_arguments_of_an_agent(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        agent(SPACE, GOAL, 0, **arguments)


@pytest.mark.parametrize("algorithm", sorted(LEARNING))
def test_learning_that_diverges_is_told(algorithm: str) -> None:
    options = {"batch_size": 16, "learning_rate": 1e20}
    learning = {**QUICK, "algorithm": algorithm, "options": options}
    searcher = agent(PROBLEM.space, PROBLEM.goal, 0, learning=learning)
    with pytest.raises(AutopruneError, match=r"learning has diverged \(.*lower learning_rate"):
        searching(searcher, 40)


def test_what_a_reward_raises_is_not_taken_for_divergence() -> None:
    class Picky:
        def __call__(self, outcomes: Outcomes, preference_NM: Any) -> Any:  # noqa: N803
            raise ValueError("no such reward today")

    searcher = agent(PROBLEM.space, PROBLEM.goal, 0, aim={"reward": Picky()}, learning=QUICK)
    with pytest.raises(ValueError, match="no such reward today"):
        searching(searcher, 10)


def test_an_algorithm_that_the_learner_does_not_know() -> None:
    with pytest.raises(AutopruneError, match="algorithm 'ppo' is not known"):
        AgentLearner("ppo", 3, 0, options={}, replay={})


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factories, "find_spec", {}.get)
    with pytest.raises(
        AutopruneError,
        match=r"searcher=sac needs the packages of the extra rl \(gymnasium and stable_baselines3 "
        r"are not installed\); pip install 'autoprune\[rl\]'",
    ):
        autoprune_agents.sac(SPACE, GOAL, 0)


@pytest.mark.parametrize("name", sorted(LEARNING))
def test_the_configs_spell_the_defaults_out(name: str) -> None:
    config = yaml.safe_load((ROOT / f"conf/searcher/{name}.yaml").read_text())
    assert config.pop("_target_") == "autoprune_agents.agent"
    learning = config["learning"]
    default = LEARNING[name]
    assert replace(default, **learning) == default
    left_out = {"noise", "decay"} if name == "sac" else set()
    left_out |= {"actor_learning_rate"} - set(learning)
    assert set(learning) | left_out == set(default.__dataclass_fields__)
    agent(SPACE, GOAL, 0, **config)


@pytest.mark.parametrize("name", sorted(LEARNING))
def test_a_sweeps_config_builds_it(name: str) -> None:
    config = compose_config("sweep", [f"searcher={name}", "searcher.learning.warm_up=7"])
    factory = build_target("searcher", plain(config)["searcher"], partial=True)
    searcher = build_searcher(factory, SPACE, GOAL, 0)
    assert isinstance(searcher, AgentSearcher)
    assert isinstance(searcher, Stateful)
    assert isinstance(searcher, Learner)
    assert searcher.warm_up == 7


def test_the_entry_points_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    added = project["entry-points"]["autoprune.searchers"]
    points = EntryPoints(EntryPoint(n, value, "autoprune.searchers") for n, value in added.items())
    monkeypatch.setattr(named, "entry_points", lambda group: points.select(group=group))
    assert set(added) == set(LEARNING)
    for name in added:
        assert isinstance(searcher_named(name)(SPACE, GOAL, 0), AgentSearcher)
    with pytest.raises(AutopruneError, match="searcher 'dpg' is not known; did you mean 'ddpg'"):
        searcher_named("dpg")


def test_it_learns() -> None:
    """A smaller problem and a smaller budget than the benchmark's, so that it takes seconds."""
    problem = known_problem("independent", 12)
    found = []
    for searcher in (
        agent(problem.space, problem.goal, 0, learning={"gradient_steps": 6, "warm_up": 20}),
        RandomSearcher(problem.space, problem.goal, 0),
    ):
        observations = searching(searcher, 80, problem=problem)
        found.append(problem.hypervolume(observations) / problem.best_hypervolume)
    assert found[0] > found[1] + 0.05
