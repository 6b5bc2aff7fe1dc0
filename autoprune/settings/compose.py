"""Composing a command's config: every fault of the command line at once, with the near miss."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autoprune.domain.errors import AutopruneError, FaultsError, first_line
from autoprune.settings.choices import choose
from autoprune.settings.override_faults import COMPOSING, FaultFinder, complaint, unnamed_options
from autoprune.settings.schema import COMMANDS, register

RECOVERY_OPTIONS = "recovery_options"
"""Where a plain config holds the options that its `recoveries` names."""


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
    register(command)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise AutopruneError(f"--config-dir {config_dir}: no such folder; name one that exists")
    extra = [_search_in(Path(config_dir))] if config_dir else []
    overrides = [_quoted(override) for override in overrides]
    with _own_hydra():
        if any(unnamed_options(overrides)):
            raise FaultsError(FaultFinder(command, extra).of(overrides))
        try:
            config = compose(command, [*extra, *overrides])
        except COMPOSING as error:
            faults = FaultFinder(command, extra).of(overrides)
            raise FaultsError(faults or [complaint(error)]) from error
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
    return f"{key}={quoted(value)}"


def quoted(value: object) -> str:
    """A text as a value of an override, whatever it holds."""
    text: str = QuotedString(str(value), Quote.single).with_quotes()
    return text


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
    place = quoted(f"file://{folder.resolve()}")
    return f"hydra.searchpath=[{place}]"


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


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's plain config with the defaults of keys that there were not when it was made."""
    defaults = plain(OmegaConf.structured(COMMANDS["sweep"]))
    options = config.get(RECOVERY_OPTIONS, {}).items()
    kept = {name: _over(defaults["recovery"], option) for name, option in options}
    return {**_over(defaults, config), **({RECOVERY_OPTIONS: kept} if kept else {})}


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
