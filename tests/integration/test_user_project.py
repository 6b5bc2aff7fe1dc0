"""A user's own model, data and task, in a folder of theirs, with the wheel installed."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int, classes: int = 3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.body(images))
"""

DATA = """
import torch
from autoprune.data import Splits, TensorSplit


def stripes(samples: int = 60, side: int = 8) -> Splits:
    return Splits(*(split(samples, side, seed) for seed in range(3)))


def split(samples: int, side: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(samples, 1, side, side, generator=generator)
    labels = torch.arange(samples) % 3
    images[labels == 1, :, ::2] += 1
    images[labels == 2, :, :, ::2] += 1
    return TensorSplit(images, labels)
"""

TASK = """
import torch
from autoprune.domain.objective import Direction, Metric


class Line:
    metrics = (Metric("mae", Direction.MIN, tolerance=0.5),)

    def __init__(self, samples: int = 40):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(samples, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True)

    def batches(self, split, *, seed=None):
        return [(self.x[i : i + 10], self.y[i : i + 10]) for i in range(0, len(self.x), 10)]

    def loss(self, model, batch):
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model, batches):
        return {"mae": float(torch.stack([(model(x) - y).abs().mean() for x, y in batches]).mean())}

    def example(self):
        return self.x[:1]
"""

MINE = """
# @package _global_
defaults:
  - override /model: net
  - override /data: stripes
  - override /tracking: none
  - override /recovery: none

name: mine
task: {augment: none}
baseline: {fit: {epochs: 4, warmup_epochs: 1}}
meter: {max_s: 0.2}
budget: {trials: 4}
"""

FILES = {
    "my_model.py": MODEL,
    "my_data.py": DATA,
    "my_task.py": TASK,
    "conf/model/net.yaml": "_target_: my_model.Net\nwidth: 12\n",
    "conf/data/stripes.yaml": "_target_: my_data.stripes\nsamples: 60\n",
    "conf/task/line.yaml": "_target_: my_task.Line\nsamples: 40\n",
    "conf/experiment/mine.yaml": MINE,
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`autoprune` from the wheel in an environment of its own; heavy libraries are shared."""
    place = tmp_path_factory.mktemp("wheel")
    pip, quiet = [sys.executable, "-m", "pip"], ["--quiet", "--no-deps"]
    built = subprocess.run(
        [*pip, "wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(place), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = place.glob("*.whl")
    home = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    install = ["--python", str(python), "install", *quiet, "--no-index"]
    subprocess.run([*pip, *install, str(wheel)], check=True)
    (site,) = home.glob("lib/*/site-packages")
    # a line of a .pth comes after the environment's own packages, and the .pth files over there,
    # of which one may lead to this checkout, are not read
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    shown = subprocess.run(
        [python, "-c", "import autoprune; print(autoprune.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=place,
    )
    assert Path(shown.stdout.strip()).is_relative_to(home)
    return home / "bin" / "autoprune"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "my_project"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(command: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [command, *words], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def front_of(folder: Path) -> dict[str, object]:
    (found,) = folder.glob("outputs/*/pareto.json")
    facts = json.loads(found.read_text())
    assert isinstance(facts, dict)
    return facts


@pytest.mark.slow  # a sweep in two workers
def test_a_sweep_over_ones_own_model_and_data_in_workers(command: Path, project: Path) -> None:
    words = ["--config-dir", "conf", "experiment=mine", "executor.slots=2", "model.width=8"]
    done = run(command, project, "sweep", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = front_of(project)
    assert facts["counts"] == {"finished": 4, "paused": 0, "stopped": 0, "failed": 0}
    assert facts["front"]
    status = run(command, project, "status", "--json")
    assert json.loads(status.stdout)["front"] == facts["front"]


def test_ones_own_task(command: Path, project: Path) -> None:
    words = [
        "--config-dir=conf",
        "task=line",
        "executor=inline",
        "tracking=none",
        "budget.trials=3",
    ]
    words += ["model=mlp", "model._target_=torch.nn.Sequential", "~model.width", "~model.depth"]
    words += ["~model.in_channels", "~model.num_classes", "~model.image_side"]
    layers = "{_target_: torch.nn.Linear, in_features: 4, out_features: 16}"
    last = "{_target_: torch.nn.Linear, in_features: 16, out_features: 1}"
    words += [f"+model._args_=[{layers},{last}]", "recovery=none", "meter.max_s=0.2"]
    words += ["baseline.fit.lr=0.005", "baseline.fit.epochs=3"]
    done = run(command, project, "sweep", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    front = front_of(project)["front"]
    assert isinstance(front, list)
    assert {"mae", "speedup"} <= front[0].keys()


def test_a_misspelt_argument_of_ones_own_model(command: Path, project: Path) -> None:
    words = ["--config-dir", "conf", "experiment=mine", "+model.clases=3"]
    done = run(command, project, "sweep", *words)
    assert done.returncode == 2
    assert "my_model.Net takes no argument 'clases'; did you mean 'classes'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "outputs").exists()
