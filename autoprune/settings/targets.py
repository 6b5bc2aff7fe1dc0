"""Building what a ``_target_`` names, with a clear message for everything that can go wrong."""

import hashlib
import importlib
import inspect
import logging
import pkgutil
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from autoprune.domain.errors import AutopruneError, FaultsError, first_line
from autoprune.settings.choices import choose


def build_target(section: str, config: Mapping[str, Any], *, partial: bool = False) -> Any:
    """Call ``config["_target_"]`` with the rest of `config` as arguments.

    `partial` gives a callable that takes the arguments still missing. Raises AutopruneError for
    a target that cannot be imported, for arguments that it does not take or that are missing
    (all of them at once), and for whatever it raises.
    """
    faults = target_faults(section, config, partial=partial)
    if faults:
        raise FaultsError(faults)
    try:
        return instantiate(dict(config), _convert_="all", _partial_=partial)
    except InstantiationException as error:
        cause = _root(error)
        if isinstance(cause, AutopruneError):
            raise cause from error
        raise AutopruneError(
            f"{section}: {config['_target_']} raised {type(cause).__name__}: {first_line(cause)}; "
            f"change the arguments in {section}, or mend the target"
        ) from error


def target_faults(section: str, config: Mapping[str, Any], *, partial: bool = False) -> list[str]:
    """What is wrong with a ``_target_``, the arguments given to it, and those nested in them."""
    if not isinstance(config.get("_target_"), str):
        return [f"{section} names no _target_; choose an option of the group {section}"]
    faults = []
    for key, value in config.items():
        if isinstance(value, Mapping) and "_target_" in value:
            faults += target_faults(f"{section}.{key}", value)
    try:
        target = located(section, config["_target_"])
        parameters = inspect.signature(target).parameters
    except AutopruneError as error:
        return [str(error), *faults]
    except ValueError:
        return faults  # some classes of extension modules have no signature
    except TypeError:
        return [
            f"{section}._target_ {config['_target_']!r} is a {type(target).__name__}; name a class "
            "or a function",
            *faults,
        ]
    return faults + _argument_faults(section, config, parameters, partial=partial)


def _argument_faults(
    section: str,
    config: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    *,
    partial: bool,
) -> list[str]:
    target, faults = config["_target_"], []
    given = [key for key in config if not key.startswith("_")]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # what is needed of a partial target is ours to give
        open_to = [n for n, p in parameters.items() if not partial or p.default is not p.empty]
        faults = [
            f"{section}.{key}: {target} takes no argument {key!r}; {choose(key, open_to)}"
            for key in given
            if key not in parameters
        ]
    if partial or "_args_" in config:
        return faults
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    return faults + [
        f"{section}.{name}: {target} needs this argument; set +{section}.{name}=..."
        for name in missing
        if name not in given
    ]


def located(section: str, target: str) -> Any:
    """The object that a dotted path names. Raises AutopruneError with the near miss."""
    logging.getLogger("hydra.utils").disabled = True  # Hydra 1.3 logs what is raised, too
    try:
        return get_object(target)
    except (Exception, SystemExit) as error:  # importing the user's module may raise anything
        cause = _root(error)
        raise AutopruneError(
            f"{section}._target_ {target!r} cannot be imported ({type(cause).__name__}: "
            f"{first_line(cause)}); {_remedy(target)}"
        ) from error


def _remedy(target: str) -> str:
    """Which part of a dotted path is wrong, and what it might have been meant to be."""
    *path, last = target.split(".")
    for depth in range(len(path), 0, -1):
        name = ".".join(path[:depth])
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit):  # the same fault that is being explained
            continue
        wanted = [*path, last][depth]
        names = {n for n in dir(module) if not n.startswith("_")}
        names |= {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))}
        return f"in {name} {choose(wanted, sorted(names))}" if wanted not in names else "mend it"
    return (
        "name module.attribute; modules are found in the current folder, in that of --config-dir, "
        "and among the installed packages"
    )


def source_digests(config: Any) -> dict[str, str]:
    """A digest of the source file behind every ``_target_`` in a nested config, by target.

    A cache keyed by them notices edits. What cannot be imported is left out: building it fails
    with a better message.
    """
    if isinstance(config, list):
        return {t: digest for item in config for t, digest in source_digests(item).items()}
    if not isinstance(config, Mapping):
        return {}
    found = source_digests(list(config.values()))
    if "_target_" in config:
        with suppress(AutopruneError, TypeError, OSError):
            target = located("", config["_target_"])
            source = inspect.getsource(inspect.getmodule(target) or target)
            found[config["_target_"]] = hashlib.sha256(source.encode()).hexdigest()[:12]
    return found


def _root(error: BaseException) -> BaseException:
    """What an error goes back to: a message of ours, where there is one, or the first fault."""
    while error.__cause__ is not None and not isinstance(error, AutopruneError):
        error = error.__cause__
    return error
