"""From a composed config to what is asked of a contest."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.contest.contest import ContestRequest, Entrant
from autoprune.searchers.named import takes
from autoprune.settings.build import build_request
from autoprune.settings.listed import check_listed, option
from autoprune.settings.rules import ONE_OR_MORE, Faults, check_ranges
from autoprune.settings.targets import build_target


def build_contest(
    config: Mapping[str, Any],
    *,
    given: frozenset[str] = frozenset(),
    code_paths: Sequence[str] = (),
    config_dir: str | None = None,
) -> ContestRequest:
    """What a plain config of `autoprune compare` asks for; `given` are the keys that a user set.

    The request's own config holds the options of its searchers as they are now, too: see
    `rebuild_contest`. Raises AutopruneError for wrong names, then FaultsError with every fault of
    every section.
    """
    faults = Faults()
    names = config["searchers"]
    if any(key.partition(".")[0] == "searcher" for key in given):
        faults.lines.append(
            "searcher: a contest has several; name options of that group in searchers, and put "
            "arguments into options of your own (--config-dir)"
        )
    faults.of(lambda: check_ranges("", config, {"seeds": ONE_OR_MORE}))
    faults.of(lambda: _check_names(names, config_dir))
    faults.check()
    options = {name: _option(name, config_dir) for name in names}
    return rebuild_contest({**config, "entrants": options}, code_paths=code_paths)


def rebuild_contest(config: Mapping[str, Any], *, code_paths: Sequence[str]) -> ContestRequest:
    """What was asked for by the config of the request that a contest began with."""
    faults = Faults()
    profile, options = config["profile"], config["entrants"].items()
    entrants = faults.of(
        lambda: {name: _entrant(option, profile=profile) for name, option in options}
    )
    sweep = faults.of(lambda: build_request(config, code_paths=code_paths))
    faults.check()
    return ContestRequest(sweep, entrants, range(config["seeds"]))


def _check_names(names: Sequence[str], config_dir: str | None) -> None:
    check_listed("searchers", names, "searcher", config_dir)
    if len(names) < 2:
        raise AutopruneError(f"searchers is {list(names)}; name two or more to compare")


def _option(name: str, config_dir: str | None) -> dict[str, Any]:
    """What `autoprune sweep searcher=NAME` sets."""
    config = option("searcher", name, config_dir)
    return {key: config[key] for key in ("searcher", "profile")}


def _entrant(option: Mapping[str, Any], *, profile: bool) -> Entrant:
    """A searcher by its option; with a profile if it takes one."""
    factory = build_target("searcher", option["searcher"], partial=True)
    wants = option["profile"] or (profile and takes(factory, "profile"))
    return Entrant(factory, option["searcher"], profile=wants)
