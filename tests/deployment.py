"""The files of deploy/, as tests read them."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"

FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.name != ".env")
LAUNCHERS = [path for path in FILES if path.match("ray/*.yaml")]
VALUES = DEPLOY / "kubernetes/mlflow-values.yaml"
MANIFESTS = [path for path in FILES if path.match("kubernetes/*.yaml") and path != VALUES]
RAY_MANIFESTS = [path for path in MANIFESTS if path.name.startswith("ray")]
DOCKERFILES = [path for path in FILES if path.name == "Dockerfile"]
COMPOSE, ENV_EXAMPLE = DEPLOY / "compose.yaml", DEPLOY / "env.example"
README = (DEPLOY / "README.md").read_text()
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documents(path: Path) -> list[Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return list(yaml.load_all(path.read_text(), loader))


def document(path: Path) -> Any:
    (found,) = documents(path)
    return found


def named(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def nodes_of(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every node of a tree of YAML, with the keys that lead to it."""
    yield path, tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from nodes_of(value, (*path, str(key)))
    elif isinstance(tree, list):
        for value in tree:
            yield from nodes_of(value, path)


def cluster_spec(path: Path) -> dict[str, Any]:
    spec: dict[str, Any] = document(path)["spec"]
    return spec.get("rayClusterSpec", spec)


def pod_templates(path: Path) -> dict[str, dict[str, Any]]:
    """The pods that a manifest of Ray asks for, by their component."""
    spec, cluster = document(path)["spec"], cluster_spec(path)
    found = [cluster["headGroupSpec"]["template"]]
    found += [group["template"] for group in cluster["workerGroupSpecs"]]
    found += [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in found}


def groups(path: Path) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster_spec(path)["workerGroupSpecs"]}


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = document(COMPOSE)["services"]
    return found


def instructions(path: Path, name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", path.read_text(), re.MULTILINE)


def all_text(paths: Iterable[Path]) -> str:
    return "\n".join(path.read_text() for path in paths)
