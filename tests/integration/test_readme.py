"""The README: its snippets run, its commands compose, its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from autoprune.cli import main
from autoprune.cli.main import COMMANDS
from autoprune.settings.compose import compose_config, config_folder, spelled_out

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\S*) ?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = FENCE.sub("", README)
SHRUNK = (
    *("budget.trials=3", "baseline.fit.epochs=1", "recovery.fit.epochs=1", "meter.max_s=0.1"),
    *("executor=inline", "tracking=none"),
)
SMALLER = {"epochs=6": "epochs=2", "epochs=2)": "epochs=1)", "trials=12": "trials=4"}
SMALLER |= {"max_drop=0.05": "max_drop=1.0"}
"""What the Python snippet is asked to do less of, so that it takes seconds."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind it, and its text."""

    language: str
    info: str
    text: str

    @property
    def runs(self) -> bool:
        return self.info == "run"

    @property
    def file(self) -> str | None:
        return self.info.removeprefix("file=") if self.info.startswith("file=") else None


BLOCKS = [Block(*found) for found in FENCE.findall(README)]


def commands() -> Iterator[str]:
    """Every `autoprune ...` line of the shell blocks, and those in the text that set a value."""
    for block in BLOCKS:
        if block.language == "sh":
            yield from (line for line in block.text.splitlines() if line.startswith("autoprune "))
    yield from re.findall(r"`(autoprune [^`]*)`", " ".join(PROSE.split()))


def words_of(line: str) -> tuple[str, list[str]]:
    """The command of a line, and its words without `--config-dir FOLDER`."""
    _, command, *words = shlex.split(line, comments=True)
    if any(name.startswith(f"{command} ") for name in COMMANDS):
        command = f"{command} {words.pop(0)}"
    if "--config-dir" in words:
        at = words.index("--config-dir")
        del words[at : at + 2]
    return command, words


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that a reader has who writes down every file that the README shows."""
    folder = tmp_path_factory.mktemp("project")
    for block in BLOCKS:
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield folder


def test_the_readme_has_what_the_tests_look_for() -> None:
    assert sum(block.runs for block in BLOCKS) >= 3
    assert sum(block.file is not None for block in BLOCKS) >= 3
    assert {block.info for block in BLOCKS if not block.file} <= {"", "run"}
    assert README.index("make demo") < README.index("make test") < README.index("## Concepts")


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"@[A-Z_]+@", README) == []


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_is_one_that_there_is(line: str, project: Path) -> None:
    command, words = words_of(line)
    if command in ("-sc", "<command>"):
        return
    assert command in COMMANDS
    flags = {"--help", "--cfg", "job", "--config-dir", *COMMANDS[command].flags}
    overrides = [word for word in words if word not in flags]
    assert all("=" in word for word in overrides), line
    if command == "measure":
        overrides = spelled_out(overrides, str(project / "conf"))
    compose_config(command.replace(" ", "_"), overrides, config_dir=str(project / "conf"))


@pytest.mark.parametrize("line", [b.text for b in BLOCKS if b.runs and b.language == "sh"])
def test_a_command_marked_to_run_does(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(line)
    assert program == "autoprune"
    assert main([*words, *SHRUNK]) == 0, capsys.readouterr().err
    assert "[  3/3] trial   2" in capsys.readouterr().out


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.runs and b.language == "python"])
@pytest.mark.slow  # a sweep on Ray
def test_a_snippet_marked_to_run_does(block: Block, project: Path) -> None:
    text = block.text
    for much, less in SMALLER.items():
        assert much in text, f"the snippet no longer holds {much!r}"
        text = text.replace(much, less)
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=False,
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "speedup" in done.stdout
    assert list(project.glob("outputs/search-*/pareto.json"))


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: b.text.split("\n")[0]
)
def test_every_snippet_of_python_compiles(block: Block) -> None:
    compile(block.text, "README.md", "exec")


def test_every_file_shown_is_used() -> None:
    rest = "".join(block.text for block in BLOCKS if block.runs)
    shown = [Path(block.file) for block in BLOCKS if block.file is not None]
    for path in shown:
        others = rest + "".join(b.text for b in BLOCKS if b.file not in (None, str(path)))
        assert re.search(rf"\b{path.stem}\b", others), path


def test_the_table_of_groups_is_that_of_the_configs() -> None:
    section = README.split("\n## Configuration\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\w, .]+) \|", section, re.MULTILINE)
    groups = {folder.name: folder for folder in config_folder().iterdir() if folder.is_dir()}
    assert {group for group, _ in rows} == set(groups)
    for group, told in rows:
        options = {path.stem for path in groups[group].glob("*.yaml")}
        named = set(told.split(", "))
        if "..." in named:
            assert named - {"..."} <= options, group
        else:
            assert named == options, group


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)\s]+)\)", PROSE))))
def test_every_link_leads_somewhere(target: str) -> None:
    parts = urlsplit(target)
    if parts.scheme:
        assert parts.scheme == "https"
        assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), target
        return
    assert not parts.path.startswith("/"), "a link from the root does not work in a clone"
    text = (ROOT / parts.path).read_text() if parts.path.endswith(".md") else README
    if parts.path:
        assert (ROOT / parts.path).exists(), target
    if parts.fragment:
        headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
        assert parts.fragment in map(slug, headings), target
