"""The import graph: layers point down only, and what each layer may know of others' libraries."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_import_contracts_are_kept() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command is not None, "import-linter is missing; install the dev extra"
    result = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


def test_a_broken_contract_would_be_seen(tmp_path: Path) -> None:
    """The contracts are alive: the same command refuses a domain that imports torch."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("autoprune", "agents/autoprune_agents"):
        source = ROOT / package
        shutil.copytree(
            source, tmp_path / source.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "autoprune/domain/trial.py").write_text("import torch\n")
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command is not None
    result = subprocess.run(
        [command, "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "autoprune.domain.trial -> torch" in result.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "autoprune/domain").glob("*.py")), ids=str)
def test_the_domain_imports_nothing_unlisted(path: Path) -> None:
    """The contract forbids by name; this allows by name, so that no library slips in."""
    assert imported(path) <= {*sys.stdlib_module_names, "numpy", "scipy", "moocore", "autoprune"}


def test_every_library_that_is_imported_is_declared() -> None:
    """A library that only comes with another one goes when that one drops it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["rl"], *extras["onnx"], *extras["hf"]]
    declared = {normal(re.match(r"[\w.-]+", line).group()) for line in listed}  # type: ignore[union-attr]
    ours = {*sys.stdlib_module_names, "autoprune", "autoprune_agents"}
    sources = [*(ROOT / "autoprune").rglob("*.py"), *(ROOT / "agents").rglob("*.py")]
    found = set().union(*map(imported, sources)) - ours
    owners = packages_distributions()
    assert [n for n in found if not declared & set(map(normal, owners[n]))] == []


def normal(name: str) -> str:
    """A distribution's name as packaging's specification normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    tree = ast.parse(path.read_text())
    return {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
