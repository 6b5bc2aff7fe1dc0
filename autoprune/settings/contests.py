"""From a composed config to what is asked of a contest."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.contest.contest import ContestRequest, Entrant
from autoprune.searchers.named import takes_profile
from autoprune.settings.build import build_request
from autoprune.settings.choices import choose
from autoprune.settings.compose import compose_config, options_of, plain
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

    Raises FaultsError with every fault of every section.
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
    profile = config["profile"]
    entrants = faults.of(
        lambda: {name: _entrant(name, config_dir, profile=profile) for name in names}
    )
    sweep = faults.of(lambda: build_request(config, code_paths=code_paths))
    faults.check()
    return ContestRequest(sweep, entrants, range(config["seeds"]))


def _check_names(names: Sequence[str], config_dir: str | None) -> None:
    options = options_of("searcher", config_dir)
    unknown = [name for name in names if name not in options]
    if unknown:
        raise AutopruneError(
            f"searchers: there is no {unknown[0]!r}; {choose(unknown[0], options)}"
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise AutopruneError(
            f"searchers names {', '.join(twice)} more than once; name each once, and give one with "
            "other arguments an option and a name of its own (--config-dir)"
        )
    if len(names) < 2:
        raise AutopruneError(f"searchers is {list(names)}; name two or more to compare")


def _entrant(name: str, config_dir: str | None, *, profile: bool) -> Entrant:
    """A searcher as `autoprune sweep searcher=NAME` has it; with a profile if it takes one."""
    config = plain(compose_config("sweep", [f"searcher={name}"], config_dir=config_dir))
    factory = build_target("searcher", config["searcher"], partial=True)
    wants = config["profile"] or (profile and takes_profile(factory))
    return Entrant(factory, config["searcher"], profile=wants)
