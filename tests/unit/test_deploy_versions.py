"""deploy/ is true to this version: its images, packages, commands and links."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from autoprune.cli.main import COMMANDS
from autoprune.settings.compose import compose_config
from tests.deployment import (
    COMPOSE,
    DEPLOY,
    DOCKERFILES,
    ENV_EXAMPLE,
    FENCE,
    FILES,
    LAUNCHERS,
    MANIFESTS,
    RAY_MANIFESTS,
    README,
    ROOT,
    VALUES,
    all_text,
    cluster_spec,
    document,
    documents,
    instructions,
    named,
    nodes_of,
)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in found}


def own_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def commands() -> Iterator[str]:
    """Every autoprune command of the README and of the manifests, wherever it runs."""
    for language, text in FENCE.findall(README):
        if language == "sh":
            yield from re.findall(r"(?:^|&& |-- |')autoprune ([a-z][^'\n|;&]*)", text, re.MULTILINE)
            yield from re.findall(r" autoprune:[\d.]+ ([a-z][^\n]*)", text)
    for path in RAY_MANIFESTS:
        entrypoint = document(path)["spec"].get("entrypoint")
        if entrypoint is not None:
            program, *words = shlex.split(entrypoint)
            assert program == "autoprune"
            yield shlex.join(words)


def test_images_are_pinned() -> None:
    images = [
        value
        for path in [*MANIFESTS, COMPOSE]
        for tree in documents(path)
        for keys, value in nodes_of(tree)
        if keys and keys[-1] == "image"
    ]
    images += re.findall(r"^ARG PYTHON_IMAGE=(\S+)", all_text(DOCKERFILES), re.MULTILINE)
    images += re.findall(r"docker run .* ([\w./-]+:[\w.-]+) ", README)
    assert len(images) >= 12
    for image in images:
        assert re.search(r":\d+\.\d+(\.\d+)?(-[a-z-]+)?$", image), image
    assert ":latest" not in all_text(FILES)


def test_versions_are_those_of_the_constraints() -> None:
    for path in RAY_MANIFESTS:
        assert cluster_spec(path)["rayVersion"] == pins()["ray"]
    text = all_text(FILES)
    assert set(re.findall(r"autoprune-mlflow:([\w.]+)", text)) == {pins()["mlflow"]}
    assert document(VALUES)["image"]["tag"] == pins()["mlflow"]
    assert set(re.findall(r"autoprune:(\d[\w.]*)", text)) == {own_version()}
    told = re.search(r"\(Ray ([\d.]+), MLflow ([\d.]+)\)", (DEPLOY / "SECURITY.md").read_text())
    assert told is not None
    assert pins()["ray"].startswith(told[1])
    assert pins()["mlflow"].startswith(told[2])


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_everything_in_an_image_is_pinned(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    wanted = []
    for install in re.findall(r"pip install ([^&\n]+)", text):
        if "--no-deps" in install:
            assert "grep '^torch==' constraints.txt" in install
            continue
        option, constraints, *words = shlex.split(install)
        assert option == "-c"
        assert Path(constraints).name == "constraints.txt"
        packages = [word for word in words if not word.startswith("-")]
        wanted += [re.sub(r"^\.(?=\[)", "autoprune", package) for package in packages]
    assert wanted
    for requirement in map(Requirement, [*wanted, *extras_of(wanted)]):
        assert canonicalize_name(requirement.name) in {*pins(), "autoprune"}, requirement


def extras_of(wanted: list[str]) -> Iterator[str]:
    """What the extras that are asked for bring, on this platform."""
    for requirement in map(Requirement, wanted):
        for extra in requirement.extras:
            for line in requires(requirement.name) or []:
                part = Requirement(line)
                if part.marker is not None and part.marker.evaluate({"extra": extra}):
                    yield part.name


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_an_image_runs_as_a_numeric_user_and_holds_what_it_copies(path: Path) -> None:
    assert instructions(path, "USER") == ["10001:10001"]
    last = path.read_text().split("\nFROM ")[-1]
    assert "\nUSER 10001:10001\n" in last
    variables = instructions(path, "ARG") + instructions(path, "ENV")
    assert not re.search(r"(PASSWORD|SECRET|TOKEN|KEY)\w*=", " ".join(variables))
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for copied in instructions(path, "COPY"):
        *sources, _ = copied.split()
        for source in sources:
            if not copied.startswith("--from="):
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source


def test_the_image_is_the_command() -> None:
    assert instructions(DEPLOY / "Dockerfile", "ENTRYPOINT") == ['["autoprune"]']
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "autoprune" in project["scripts"]


def test_there_are_commands() -> None:
    assert len(set(commands())) >= 5


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_composes(line: str) -> None:
    command, *words = shlex.split(line)
    overrides = [word for word in words if word not in COMMANDS[command].flags]
    assert all("=" in word for word in overrides), line
    compose_config(command, overrides)


@pytest.mark.parametrize("document_name", ["README.md", "SECURITY.md"])
def test_every_link_leads_somewhere(document_name: str) -> None:
    text = FENCE.sub("", (DEPLOY / document_name).read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        parts = urlsplit(target)
        assert not parts.scheme or parts.scheme == "https", target
        if parts.path and not parts.scheme:
            assert (DEPLOY / parts.path).is_file(), target
        if parts.fragment and not parts.path:
            assert parts.fragment in anchors, target


def test_every_path_that_is_named_exists() -> None:
    text = all_text(FILES)
    for name in set(re.findall(r"\bdeploy/[\w./-]*\w", text)) - {"deploy/.env"}:
        assert (ROOT / name).exists(), name


def test_every_file_is_told_of() -> None:
    for path in [*LAUNCHERS, *MANIFESTS, VALUES, COMPOSE, ENV_EXAMPLE]:
        assert f"]({named(path)})" in README, path
