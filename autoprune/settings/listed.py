"""Options of a config group that a list names, such as ``searchers=[nsga2,tpe]``."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.domain.errors import AutopruneError, FaultsError, check_once
from autoprune.settings.choices import choose
from autoprune.settings.compose import RECOVERY_OPTIONS, compose_config, options_of, plain


def check_listed(key: str, names: Sequence[str], group: str, config_dir: str | None) -> None:
    """Raise FaultsError where the list under `key` names what is no option, or one twice."""
    faults = _faults(key, names, group, config_dir)
    if faults:
        raise FaultsError(faults)


def _faults(key: str, names: Sequence[str], group: str, config_dir: str | None) -> list[str]:
    options = options_of(group, config_dir)
    faults = [
        f"{key}: there is no {name!r}; {choose(name, options)}"
        for name in names
        if name not in options
    ]
    more = ", and give one with other arguments an option and a name of its own (--config-dir)"
    try:
        check_once(key, names, remedy=more)
    except AutopruneError as error:
        faults.append(str(error))
    return faults


def option(group: str, name: str, config_dir: str | None) -> dict[str, Any]:
    """The config of `autoprune sweep GROUP=NAME`."""
    return plain(compose_config("sweep", [f"{group}={name}"], config_dir=config_dir))


def with_recoveries(
    config: Mapping[str, Any], *, given: frozenset[str], config_dir: str | None
) -> dict[str, Any]:
    """A sweep's plain config with the options that its `recoveries` names as they are now, so that
    a resume does not depend on files; `given` are the keys that a user set.

    Raises FaultsError for wrong names, and for values that would be set for nothing.
    """
    names = config.get("recoveries")
    if not names:
        return dict(config)
    faults = []
    idle = sorted(key for key in given if key.partition(".")[0] == "recovery")
    if idle:
        faults.append(
            f"recoveries={list(names)} heals as its options say, and nothing reads "
            f"{', '.join(idle)}; put values into options of your own (--config-dir), or set "
            "recoveries=[]"
        )
    faults += _faults("recoveries", names, "recovery", config_dir)
    if faults:
        raise FaultsError(faults)
    options = {name: option("recovery", name, config_dir)["recovery"] for name in names}
    return {**config, RECOVERY_OPTIONS: options}
