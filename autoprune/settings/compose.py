"""Composing a command's config: every fault of the command line at once, with the near miss."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autoprune.domain.errors import AutopruneError, FaultsError, first_line
from autoprune.settings.schema import COMMANDS, register

COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
"""What composing a config raises. A ValueError is Hydra 1.3's for an option that is no name."""

MANY = 12
"""Above so many options only the near miss is named."""


def config_folder() -> Path:
    """Where the shipped configs are: inside the wheel, or beside the package in a checkout."""
    package = Path(str(files("autoprune")))
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def compose_config(
    command: str, overrides: Sequence[str], *, config_dir: str | None = None
) -> DictConfig:
    """The config of `autoprune <command> <overrides>`; `config_dir` adds the user's own files.

    Raises FaultsError with a line for every override that is wrong.
    """
    register()
    if config_dir is not None and not Path(config_dir).is_dir():
        raise AutopruneError(f"--config-dir {config_dir}: no such folder; name one that exists")
    extra = [_search_in(Path(config_dir))] if config_dir else []
    overrides = [_quoted(override) for override in overrides]
    with _own_hydra():
        unnamed = list(_unnamed(overrides))
        if unnamed:
            raise FaultsError(_Faults(command, extra).of(overrides))
        try:
            config = compose(command, [*extra, *overrides])
        except COMPOSING as error:
            faults = _Faults(command, extra).of(overrides)
            raise FaultsError(faults or [_complaint(error)]) from error
    strange = list(_strange_keys(OmegaConf.structured(COMMANDS[command]), config))
    if strange:
        raise FaultsError(strange)
    return config


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra on the shipped configs; a script's own is left as it was."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = theirs


def _quoted(override: str) -> str:
    """The override with its value in quotes where that is a bare text beyond ASCII.

    Hydra 1.3's grammar takes other letters only in quotes, which a path of a user's may not have.
    """
    key, sign, value = override.partition("=")
    if value.isascii() or not sign or value[:1] in "'\"[{":
        return override
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _unnamed(overrides: Sequence[str]) -> Iterator[str]:
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


def _complaint(error: Exception) -> str:
    """The first line of an error; of a file that is no YAML, what is wrong, in which line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return (
            f"{mark.name}, line {mark.line + 1}: {error.problem}; mend the file, which is not YAML"
        )
    return first_line(error)


def options_of(group: str, config_dir: str | None = None) -> list[str]:
    """The options of a config group, shipped and the user's own, without composing anything."""
    folders = [config_folder(), *([Path(config_dir)] if config_dir else [])]
    return sorted({path.stem for folder in folders for path in folder.glob(f"{group}/*.yaml")})


def given_keys(words: Sequence[str]) -> frozenset[str]:
    """The keys that overrides set."""
    return frozenset(word.lstrip("+").partition("=")[0] for word in words)


def spelled_out(words: Sequence[str], config_dir: str | None = None) -> list[str]:
    """The words of `autoprune measure` with ``baseline=FILE`` as ``baseline.checkpoint=FILE``.

    The two networks are named alike, and an option of the group `baseline` stays one.
    """
    known = [*options_of("baseline", config_dir), "null"]

    def spelled(word: str) -> str:
        key, sign, value = word.partition("=")
        named = key == "baseline" and sign and value not in known
        return f"baseline.checkpoint={value}" if named else word

    return list(map(spelled, words))


def _search_in(folder: Path) -> str:
    """The override that adds a folder to Hydra's search path, whatever its name holds."""
    place = QuotedString(f"file://{folder.resolve()}", Quote.single)
    return f"hydra.searchpath=[{place.with_quotes()}]"


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as resolved plain containers. Raises AutopruneError for missing values."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        found = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise AutopruneError(f"{where}{first_line(error)}; mend the interpolation") from error
    if missing:
        raise FaultsError([f"{key} has no value; set {key}=..." for key in missing])
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key != "hydra"}


class _Faults:
    """Finds out which overrides are wrong, by composing with each of them alone."""

    def __init__(self, command: str, extra: Sequence[str]) -> None:
        self.command, self.base = command, list(extra)

    def of(self, overrides: Sequence[str]) -> list[str]:
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
                faults.append(
                    f"{override}: several values at once are Hydra's --multirun, which autoprune "
                    "does not do (a sweep has its own searcher); run the command once a value"
                )
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

    def _fault(self, override: str, parsed: Override) -> str | None:
        try:
            compose(self.command, [*self.base, override])
        except MissingConfigException as error:
            return self._missing_option(override, parsed, error)
        except yaml.YAMLError as error:
            return f"{override}: {_complaint(error)}"
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
            section = OmegaConf.select(known, key.rpartition(".")[0] or "_none_")
            own = ""
            if isinstance(section, DictConfig) and "_target_" in section:
                own = f" (+{override} adds an argument)"
            return f"{override}: there is no key {key!r}; {choose(key, keys)}{own}"
        reason = first_line(error.__cause__ or error)
        usual = OmegaConf.select(known, key)
        hint = "see --cfg job for the keys" if usual is None else f"by default it is {usual}"
        return f"{override}: {reason}; {hint}"


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's plain config with the defaults of keys that there were not when it was made."""
    return _over(plain(OmegaConf.structured(COMMANDS["sweep"])), config)


def _over(defaults: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _over(defaults[key], value)
        for key, value in config.items()
        if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping)
    }
    return {**defaults, **config, **both}


def _strange_keys(schema: DictConfig, config: DictConfig, prefix: str = "") -> Iterator[str]:
    """A fault for every key that ``+key=`` or a user's file adds and that nothing reads."""
    known = [f"{prefix}{key!s}" for key in schema]
    for key in map(str, config):
        name = f"{prefix}{key}"
        if name not in known:
            if name != "hydra":
                yield f"{name}: there is no such key, and nothing reads it; {choose(name, known)}"
            continue
        below, own = config._get_node(key), schema._get_node(key)
        # a field of type dict is a _target_ with whatever arguments it takes
        if isinstance(own, DictConfig) and is_dataclass(own._metadata.object_type):
            assert isinstance(below, DictConfig)
            yield from _strange_keys(own, below, f"{name}.")


def choose(wanted: str, options: Sequence[str]) -> str:
    """The remedy for a misspelt name: the near miss where there is one, and what there is."""
    near = difflib.get_close_matches(wanted, options, n=1, cutoff=0.5)
    if len(options) <= MANY:
        listed = f"choose from {', '.join(options)}" if options else "there is none"
        return f"did you mean {near[0]!r}? ({listed})" if near else listed
    return (
        f"did you mean {near[0]!r}?" if near else "there is nothing like it (`--cfg job` shows all)"
    )


def _flat_keys(config: DictConfig) -> list[str]:
    def walk(tree: Mapping[Any, Any], prefix: str) -> Iterator[str]:
        for key, value in tree.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    return list(walk(tree, ""))
