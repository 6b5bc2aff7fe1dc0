"""The configuration that users build on: its keys and options change on purpose only."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.planning import make_plan
from autoprune.settings.build import build_request
from autoprune.settings.compose import compose_config, config_folder, plain
from autoprune.settings.schema import COMMANDS, register

SURFACE = Path(__file__).with_name("settings_surface.txt")
NAMED = (
    *("model", "data", "baseline", "space", "importance", "recovery", "meter", "objective"),
    *("searcher", "ladder", "executor", "tracking", "budget", "experiment", "task"),
)


def options() -> dict[str, list[str]]:
    """Every config group with its options."""
    register("sweep")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return {
            group: sorted(loader.get_group_options(group))
            for group in loader.list_groups("")
            if group != "hydra"
        }


OPTIONS = options()


def keys(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key in map(str, config):
        value = config._get_node(key)
        found.append(f"{prefix}{key}")
        if isinstance(value, DictConfig) and not value._is_none():
            found += keys(value, f"{prefix}{key}.")
    return found


def surface() -> str:
    lines = [f"{group}={option}" for group, names in OPTIONS.items() for option in names]
    for command in COMMANDS:
        lines += [f"{command} {key}" for key in keys(compose_config(command, []))]
    return "\n".join(sorted(lines)) + "\n"


def test_the_surface_changes_on_purpose_only() -> None:
    """Where it did: `python -m tests.unit.test_settings_surface` writes the file anew."""
    assert surface() == SURFACE.read_text()


def test_all_named_groups_exist_and_their_files_say_what_they_are() -> None:
    assert sorted(OPTIONS) == sorted(NAMED)
    for group, names in OPTIONS.items():
        for name in names:
            text = (config_folder() / group / f"{name}.yaml").read_text()
            assert text.startswith("#"), f"conf/{group}/{name}.yaml has no comment"


@pytest.mark.parametrize("experiment", OPTIONS["experiment"])
def test_every_experiment_can_be_planned(experiment: str) -> None:
    config = compose_config("plan", [f"experiment={experiment}", "executor=inline"])
    assert config.name == experiment
    assert make_plan(build_request(plain(config))).space.size > 100


@pytest.mark.parametrize("experiment", OPTIONS["experiment"])
def test_an_option_trains_as_it_says_in_every_experiment(experiment: str) -> None:
    """What an experiment sets of a group's keys would win over any option of it."""
    chosen = {"baseline": "short", "recovery": "distill"}
    words = [f"{group}={option}" for group, option in chosen.items()]
    alone = compose_config("plan", words)
    together = compose_config("plan", [f"experiment={experiment}", *words])
    assert {group: together[group] for group in chosen} == {g: alone[g] for g in chosen}
    file = config_folder() / "experiment" / f"{experiment}.yaml"
    assert not {*chosen} & {*OmegaConf.load(file)}


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={option}"
        for group in ("searcher", "objective", "importance", "recovery", "meter", "space", "budget")
        for option in OPTIONS[group]
        if option not in ("cuda_graph", "se_gate")  # need CUDA, and a network with gates
    ]
    + [
        "executor=ray",
        "tracking=mlflow",
        "tracking=none",
        "task=classification",
    ],
)
def test_every_option_builds(override: str) -> None:
    mlp = ["model=mlp", "model.width=16", "model.image_side=8", "data.side=8"]
    vgg = ["model.depth=8", "model.width=8"]
    # AMC's warm-up takes 100 trials, and a smaller budget is refused
    budget = ["budget.trials=200"] if override == "searcher=ddpg" else []
    normed = "bn_scale" in override or "slimming" in override
    network = vgg if normed else mlp
    config = compose_config("plan", [*network, *budget, override])
    assert make_plan(build_request(plain(config))).space.axes


def test_gates_rank_a_network_that_has_some(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    gated = "_target_: tests.criteria_tasks.Excited\nin_channels: 1\nclasses: 10\n"
    (tmp_path / "model" / "gated.yaml").write_text(gated)
    words = ["model=gated", "data.side=8", "importance=se_gate"]
    config = compose_config("plan", words, config_dir=str(tmp_path))
    assert make_plan(build_request(plain(config))).space.axes


def test_a_cluster_is_asked_for_by_one_word() -> None:
    # a plan would ask the cluster how many trials fit
    executor = build_request(plain(compose_config("plan", ["executor=cluster"]))).executor
    assert isinstance(executor, TuneExecutor)
    assert executor.address == "auto"


if __name__ == "__main__":
    SURFACE.write_text(surface())
