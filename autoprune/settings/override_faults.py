"""Which overrides of a command line are wrong, and how: each fault with its near miss."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autoprune.domain.errors import first_line
from autoprune.settings.choices import choose

COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
"""What composing a config raises. A ValueError is Hydra 1.3's for an option that is no name."""


def unnamed_options(overrides: Sequence[str]) -> Iterator[str]:
    """The faults of options that are no names; Hydra takes lists of them without a word."""
    for override in overrides:
        with suppress(HydraException):
            parsed = OverridesParser.create().parse_override(override)
            if not parsed.is_sweep_override() and (fault := _unnamed_option(override, parsed)):
                yield fault


def _unnamed_option(override: str, parsed: Override) -> str | None:
    key = parsed.key_or_group.lstrip("/")
    loader = GlobalHydra.instance().config_loader()
    if "." in key or key.split("/")[0] not in loader.list_groups("") or parsed.is_delete():
        return None
    if isinstance(parsed.value(), str):
        return None
    listed = choose("", loader.get_group_options(key))
    return f"{override}: {key} takes one option by its name; {listed}"


def complaint(error: Exception) -> str:
    """The first line of an error; of a file that is no YAML, what is wrong, in which line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return (
            f"{mark.name}, line {mark.line + 1}: {error.problem}; mend the file, which is not YAML"
        )
    return first_line(error)


class FaultFinder:
    """Finds out which overrides are wrong, by composing with each of them alone."""

    def __init__(self, command: str, extra: Sequence[str]) -> None:
        self.command, self.base = command, list(extra)

    def of(self, overrides: Sequence[str]) -> list[str]:
        """A line for every override that is wrong; options are tried before values."""
        faults: list[str] = []
        choices: list[tuple[str, Override]] = []
        values: list[tuple[str, Override]] = []
        groups = GlobalHydra.instance().config_loader().list_groups("")
        for override in overrides:
            try:
                parsed = OverridesParser.create().parse_override(override)
            except HydraException:
                faults.append(
                    f"{override!r} cannot be read; write key=value, and quote {{}} and []"
                )
                continue
            if parsed.is_sweep_override():
                faults.append(self._several(override))
                continue
            key = parsed.key_or_group.lstrip("/")
            chooses = key.split("/")[0] in groups and "." not in key
            if fault := _unnamed_option(override, parsed):
                faults.append(fault)
                continue
            (choices if chooses else values).append((override, parsed))
        # options first: they decide which keys there are
        for override, parsed in choices:
            fault = self._fault(override, parsed)
            if fault is None:
                self.base.append(override)
            else:
                faults.append(fault)
        found = [self._fault(override, parsed) for override, parsed in values]
        return faults + [fault for fault in found if fault is not None]

    def _several(self, override: str) -> str:
        """Of ``key=a,b``."""
        key, _, values = override.partition("=")
        with suppress(*COMPOSING):
            now = OmegaConf.select(compose(self.command, self.base), key.lstrip("+"))
            if OmegaConf.is_list(now):
                return f"{override}: write several values as a list, '{key}=[{values}]'"
        return (
            f"{override}: several values at once are Hydra's --multirun, which autoprune does not "
            "do (a sweep has its own searcher); run the command once a value"
        )

    def _fault(self, override: str, parsed: Override) -> str | None:
        try:
            compose(self.command, [*self.base, override])
        except MissingConfigException as error:
            return self._missing_option(override, parsed, error)
        except yaml.YAMLError as error:
            return f"{override}: {complaint(error)}"
        except COMPOSING as error:
            return self._wrong_value(override, parsed, error)
        return None

    def _missing_option(
        self, override: str, parsed: Override, error: MissingConfigException
    ) -> str:
        options = sorted(error.options or [])
        if not options:
            return f"{override}: {first_line(error)}; see --help for the groups and their options"
        wanted = str(parsed.value())
        group = parsed.key_or_group
        return f"{override}: {group} has no option {wanted!r}; {choose(wanted, options)}"

    def _wrong_value(self, override: str, parsed: Override, error: Exception) -> str:
        key = parsed.key_or_group
        known = compose(self.command, self.base)
        keys = _flat_keys(known)
        if key not in keys:
            # an argument that a _target_ may well take, but that its config does not list
            own = f" (+{override} adds an argument)" if _below_target(known, key) else ""
            return f"{override}: there is no key {key!r}; {choose(key, keys)}{own}"
        reason = first_line(error.__cause__ or error)
        usual = OmegaConf.select(known, key)
        hint = "see --cfg job for the keys" if usual is None else f"by default it is {usual}"
        return f"{override}: {reason}; {hint}"


def _below_target(config: DictConfig, key: str) -> bool:
    parts = key.split(".")
    above = (OmegaConf.select(config, ".".join(parts[:n])) for n in range(1, len(parts)))
    return any(isinstance(section, DictConfig) and "_target_" in section for section in above)


def _flat_keys(config: DictConfig) -> list[str]:
    def walk(tree: Mapping[Any, Any], prefix: str) -> Iterator[str]:
        for key, value in tree.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    return list(walk(tree, ""))
