"""The model registry: versions with evidence, and the aliases challenger, champion, previous.

Aliases are moved one request at a time, and the process may die between two. So every move is
written down first, as a tag of the registered model, and whoever comes next completes it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Direction
from autoprune.orchestration.tracking.connection import process_store

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
EVIDENCE, VERDICT, MOVING = "autoprune.evidence", "autoprune.verdict", "autoprune.moving"
MODEL = "autoprune.model"
"""MLflow 3.17 takes a version's model id and does not give it back from a search."""


class RegistryError(AutopruneError):
    """A registry that does not hold what was asked of it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the proof of a version found, on the test split and on the idle machine.

    `value` is the task's metric with its better `direction`; `margin` is the drop of it that
    promotion allowed, in its own unit. `speedup` is against `baseline`, the digest of the
    unpruned network, with the 95% interval [speedup_low, speedup_high] measured on `runtime`
    and `device`.
    """

    metric: str
    direction: Direction
    value: float
    margin: float
    speedup: float
    speedup_low: float
    speedup_high: float
    baseline: str
    runtime: str
    device: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return asdict(self) | {"direction": str(self.direction)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild evidence from `to_json`."""
        return cls(**{**data, "direction": Direction(data["direction"])})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a challenger takes the champion's place, and why."""

    wins: bool
    reason: str


def judge(challenger: Evidence, champion: Evidence | None) -> Verdict:
    """Whether the challenger beats the champion, beyond what noise can explain.

    It does where it is faster (the lower end of its interval above the champion's speedup) and
    its metric is at most `challenger.margin` worse, or where its metric is better by more than
    that and it is not slower. Evidence on different metrics, baselines, runtimes or devices
    cannot be compared; then the champion stays.
    """
    if champion is None:
        return Verdict(True, "there is no champion")
    for name in ("metric", "direction", "baseline", "runtime", "device"):
        new, old = getattr(challenger, name), getattr(champion, name)
        if new != old:
            return Verdict(
                False,
                f"not comparable: {name} {new}, the champion's is {old}; replace=true takes its "
                "place all the same",
            )
    gain = challenger.direction.sign * (challenger.value - champion.value)
    told = (
        f"{challenger.metric} {challenger.value:.4g} against {champion.value:.4g}, speedup "
        f"{challenger.speedup:.3g} ({challenger.speedup_low:.3g} to {challenger.speedup_high:.3g}) "
        f"against {champion.speedup:.3g}"
    )
    if challenger.speedup_low > champion.speedup and gain >= -challenger.margin:
        return Verdict(True, f"faster: {told}")
    if gain > challenger.margin and challenger.speedup_high >= champion.speedup:
        return Verdict(True, f"better: {told}")
    return Verdict(False, f"neither clearly faster nor clearly better: {told}")


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered version and what the registry made of it."""

    name: str
    version: str
    verdict: Verdict


def register(
    client: MlflowClient,
    name: str,
    model_id: str,
    *,
    evidence: Evidence,
    tags: Mapping[str, str] | None = None,
    replace: bool = False,
) -> Registered:
    """Register a logged model as version of `name`, as challenger or, where it wins, champion.

    The verdict and the evidence stay with the version as tags. A model that is registered
    already is not registered twice: its version is judged anew. A champion that autoprune did
    not register has no evidence; it is not replaced, unless `replace` says so.
    """
    _ensure(client, name)
    _complete(client, name)
    version = _version(client, name, model_id, dict(tags or {}))
    client.set_model_version_tag(name, version, EVIDENCE, json.dumps(evidence.to_json()))
    champion = holder(client, name, CHAMPION)
    if champion == version:
        return Registered(name, version, Verdict(True, "it is the champion already"))
    verdict = _judged(client, name, evidence, champion)
    if replace and not verdict.wins:
        verdict = Verdict(True, f"as was asked; {verdict.reason}")
    client.set_model_version_tag(name, version, VERDICT, verdict.reason)
    if verdict.wins:
        former = champion or holder(client, name, PREVIOUS)
        _move(client, name, {PREVIOUS: former, CHAMPION: version, CHALLENGER: None}, "promote")
    else:
        client.set_registered_model_alias(name, CHALLENGER, version)
    return Registered(name, version, verdict)


def rollback(client: MlflowClient, name: str) -> tuple[str, str]:
    """Champion and previous change places; returns the versions (champion, previous) now.

    A rollback that was cut off is completed, not done twice. Raises RegistryError where there
    is no such model, no champion, or nothing to go back to.
    """
    try:
        unfinished = _complete(client, name)
    except MlflowException as error:
        raise RegistryError(
            f"there is no registered model {name!r}; promote a model of a sweep first"
        ) from error
    champion, previous = holder(client, name, CHAMPION), holder(client, name, PREVIOUS)
    if champion is None:
        raise RegistryError(f"model {name!r} has no champion; promote a model of a sweep first")
    if previous is None or previous == champion:
        raise RegistryError(
            f"model {name!r} has no version before champion {champion}; nothing to go back to"
        )
    if unfinished != "rollback":
        _move(client, name, {CHAMPION: previous, PREVIOUS: champion}, "rollback")
        champion, previous = previous, champion
    return champion, previous


def holder(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version that holds an alias, None where none does."""
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else str(version)


def _ensure(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise RegistryError(f"model name {name!r} is refused: {error.message}") from error


def _version(client: MlflowClient, name: str, model_id: str, tags: dict[str, str]) -> str:
    model = client.get_logged_model(model_id)
    for found in _versions(client, name):
        if found.tags.get(MODEL) == model_id:
            return str(found.version)
    tags = {**tags, MODEL: model_id}
    with process_store(client.tracking_uri):
        made = client.create_model_version(
            name, f"models:/{model_id}", model.source_run_id, tags=tags, model_id=model_id
        )
    return str(made.version)


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _judged(client: MlflowClient, name: str, evidence: Evidence, champion: str | None) -> Verdict:
    if champion is None:
        return judge(evidence, None)
    told = client.get_model_version(name, champion).tags.get(EVIDENCE)
    if told is None:
        return Verdict(False, f"champion {champion} has no evidence to compare with")
    return judge(evidence, Evidence.from_json(json.loads(told)))


def _move(client: MlflowClient, name: str, aliases: Mapping[str, str | None], what: str) -> None:
    """Move aliases all together or, after a crash, on the next call; None removes one."""
    intent = {"what": what, "aliases": dict(aliases)}
    client.set_registered_model_tag(name, MOVING, json.dumps(intent))
    _complete(client, name)


def _complete(client: MlflowClient, name: str) -> str | None:
    """Carry out a move that is written down; returns what it was, None where there is none."""
    model = client.get_registered_model(name)
    if MOVING not in model.tags:
        return None
    intent = json.loads(model.tags[MOVING])
    for alias, version in intent["aliases"].items():
        if version is not None:
            client.set_registered_model_alias(name, alias, version)
        elif alias in model.aliases:
            client.delete_registered_model_alias(name, alias)
    client.delete_registered_model_tag(name, MOVING)
    return str(intent["what"])
