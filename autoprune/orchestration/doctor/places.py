"""Where a check runs: in this process, or on a node of the Ray cluster that it is in."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import TrialError
from autoprune.orchestration.executors.cluster import cannot_run, members, start_on
from autoprune.orchestration.executors.resources import Node


class Place(Protocol):
    """A machine that can be asked."""

    @property
    def name(self) -> str:
        """What it is called in findings."""
        ...

    @property
    def node(self) -> Node:
        """What it offers to trials."""
        ...

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What an importable function returns there; raises AutopruneError as it does."""
        ...


@dataclass(frozen=True)
class Here:
    """This process, and the machine that it runs on."""

    name: str
    node: Node

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function."""
        return function(*arguments)


@dataclass(frozen=True)
class There:
    """A node by the id that Ray knows it by."""

    name: str
    node: Node
    key: str
    code_paths: Sequence[str] = field(default=(), repr=False)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function in a worker there. Raises AutopruneError where none can."""
        try:
            return ray.get(start_on(self.key, function, *arguments, code_paths=self.code_paths))
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, (AutopruneError, TrialError)):
                raise cause from None
            raise cannot_run(self.name, error) from error


def places(code_paths: Sequence[str] = ()) -> list[There]:
    """The nodes of the cluster that this process is in."""
    found = members()
    names = told_apart({key: node.name for key, node in found.items()})
    return [There(names[key], node, key, code_paths) for key, node in found.items()]


def told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """Names by key, with the beginning of the key where two are alike: several nodes of a host."""
    times = Counter(names.values())
    return {k: name if times[name] == 1 else f"{name} ({k[:6]})" for k, name in names.items()}
