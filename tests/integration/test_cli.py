"""The command as a user types it: help, configuration, completion, plans, status, exit codes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from autoprune.cli import main
from autoprune.cli.main import COMMANDS
from autoprune.domain.trial import Measurement
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.orchestration.journal_line import decode, encode
from autoprune.orchestration.record import last_told, read_journal
from autoprune.settings.compose import config_folder

ROOT = Path(__file__).parents[2]
SMALL = [
    *("model=mlp", "model.width=16", "model.image_side=8", "data.side=8", "name=tiny"),
    *("baseline.fit.epochs=1", "baseline.fit.warmup_epochs=0", "recovery=none", "seed=3"),
    *("meter.max_s=0.1", "meter.gate=false", "budget.trials=3", "executor=inline"),
    "tracking=none",
]
CODE = "import sys; from autoprune.cli import main; sys.exit(main())"
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        found = main(words)
        out, err = capsys.readouterr()
        assert found == code, out + err
        assert "\x1b" not in out, "control sequences in what is no terminal"
        return str(out if code in (0, 130) else err)

    return call


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a small sweep that is over."""
    folder = tmp_path_factory.mktemp("swept") / "outputs"
    assert main(["sweep", *SMALL, f"output={folder}"]) == 0
    return folder


def process(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_overview_lists_commands_and_exit_codes(run: Run) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        out = run(*words)
        assert all(f"  {name} " in out for name in COMMANDS)
        codes = [line.split()[0] for line in out.partition("Exit codes:")[2].splitlines() if line]
        assert codes == ["0", "1", "2", "3", "130"]
    assert run("--version").startswith("autoprune ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(run: Run, command: str) -> None:
    out = run(*command.split(), "--help")
    assert out.startswith(f"autoprune {command}: ")
    assert f"autoprune {command} " in out.partition("\n")[2] or command == "plan"
    assert len(out.splitlines()) < 40
    assert "schema" not in out
    assert "--multirun" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_cfg_shows_the_config_and_runs_nothing(run: Run, command: str, tmp_path: Path) -> None:
    key = "job" if command in ("logs", "stop") else "output"
    out = run(*command.split(), "--cfg", "job", f"{key}=elsewhere")
    assert f"{key}: elsewhere" in out.splitlines()
    assert "hydra" not in out
    assert not list(tmp_path.iterdir())


def test_cfg_of_a_part_and_resolved(run: Run) -> None:
    words = ["experiment=digits_resnet20", "model.depth=56", "--cfg", "job"]
    assert "depth: 56" in run("sweep", *words, "--package", "model")
    assert "data: ${data}" in run("sweep", *words, "--package", "task")
    assert "${" not in run("sweep", *words, "--resolve")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("defaults", "| data/digits "),
        ("defaults-tree", " data: digits\n"),
        ("config", "in_channels: 1\n"),
        ("searchpath", f"file://{config_folder()}"),
        ("plugins", "BashCompletion\n"),
    ],
)
def test_info(run: Run, kind: str, text: str) -> None:
    assert text in run("plan", "--info", kind)


def test_configs_of_the_users(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /model: resnet\nname: mine\n"
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(text)
    for flag in (["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]):
        out = run("sweep", *flag, "experiment=own", "--cfg", "job")
        assert "name: mine" in out
        assert "autoprune.models.resnet" in out
    assert "own" in run("sweep", "--config-dir", "mine", "--help")


def test_heavy_libraries_are_not_imported_to_be_asked_for_help_or_status(outputs: Path) -> None:
    code = (
        "import sys; from autoprune.cli import main; code = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'ray', 'mlflow', 'optuna') if m in sys.modules]);"
        "sys.exit(code)"
    )
    for words in (["--help"], ["sweep", "--help"], ["status", f"output={outputs}"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"


def query(line: str) -> list[str]:
    done = process("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_completion_of_commands_groups_options_and_keys(tmp_path: Path) -> None:
    assert query("autoprune ") == list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    assert query("autoprune s") == ["sweep", "status", "submit", "stop", "study"]
    assert query("autoprune study ") == ["sparsity"]
    assert query("autoprune study x") == []
    assert query("autoprune study sparsity onnx") == ["onnxruntime="]
    assert query("autoprune study sparsity --j") == ["--json"]
    assert query("autoprune sweep sea") == ["searcher.", "searcher="]
    assert query("autoprune sweep searcher=ns") == ["searcher=nsga2", "searcher=nsga3"]
    assert query("autoprune sweep experiment=digits_vgg budget.tr") == [
        *("budget.trial_hours=", "budget.trial_limit_s=", "budget.trials=")
    ]
    assert query("autoprune promote select.max") == ["select.max_accuracy_drop="]
    assert query("autoprune status --j") == ["--json"]
    assert query("autoprune doctor --j") == ["--json"]
    assert query("autoprune doctor executor=cl") == ["executor=cluster"]
    assert "schema" not in " ".join(query("autoprune sweep "))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text("# @package _global_\nname: own\n")
    line = f"autoprune sweep --config-dir {tmp_path} experiment=o"
    assert query(line) == ["experiment=own"]
    assert query("autoprune nothing ") == []


def test_completion_in_a_real_bash(tmp_path: Path) -> None:
    script = tmp_path / "autoprune"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom autoprune.cli import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    words = """
        eval "$(autoprune -sc install=bash)"
        COMP_LINE='autoprune sweep model=mo'; COMP_POINT=${#COMP_LINE}; COMP_CWORD=2
        hydra_bash_completion
        printf '%s\\n' "${COMPREPLY[@]}"
        complete -p autoprune
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", words],
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[0] == "model=mobilenet", done.stderr
    assert "hydra_bash_completion autoprune" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_install_scripts(run: Run, shell: str) -> None:
    assert "autoprune" in run("-sc", f"install={shell}")
    run("-sc", f"uninstall={shell}")


def test_a_plan_shows_groups_space_and_time_and_starts_nothing(run: Run, tmp_path: Path) -> None:
    out = run("plan", *SMALL, "recovery=finetune")
    assert "hidden.0" in out
    assert "2 to 16" in out
    assert "space       2 groups, 225 specs" in out
    assert "3 trials, 1 at a time, up to 8 epochs each" in out
    assert "time        about" in out
    assert "for the baseline (once)" in out
    assert "not pruned  head: its units are part of the network's output" in out
    assert not list(tmp_path.iterdir())
    assert "for the profile" not in out
    words = ("budget.trials=null", "budget.wall_minutes=30", "recovery=finetune", "ladder=asha")
    words += ("profile=true",)
    out = run("plan", *SMALL, *words)
    assert "up to 8 epochs each, one in 4 goes on after 0\n" in out
    assert "for the profile (once)" in out
    assert "any number of trials" in out
    assert "time        about 30 min" in out


def test_status_as_a_table_and_as_json(run: Run, outputs: Path) -> None:
    (folder,) = (path.parent for path in outputs.glob(f"*/{JOURNAL_FILE}"))
    out = run("status", f"output={outputs}")
    header = next(line for line in out.splitlines() if "trial" in line and "accuracy" in line)
    assert "95% interval" in header, "the table is folded"
    assert f"Pareto front of {folder.name}" in out
    assert "3 of 3 trials done, 0 under way or interrupted" in out
    facts = json.loads(run("status", f"sweep={folder.name}", f"output={outputs}", "--json"))
    assert facts["sweep_id"] == folder.name
    assert facts["counts"] == {"finished": 3, "paused": 0, "stopped": 0, "failed": 0}
    assert (facts["trials"], facts["asked_not_told"]) == (3, 0)
    assert facts["front"] == json.loads((folder / "pareto.json").read_text())["front"]


def test_status_tells_of_a_torn_line(run: Run, outputs: Path) -> None:
    (journal,) = outputs.glob(f"*/{JOURNAL_FILE}")
    whole = journal.read_bytes()
    try:
        journal.write_bytes(whole + b'{"at":')
        out = run("status", f"output={outputs}")
        assert "was torn by a crash (6 bytes); autoprune resume" in out
        assert "3 of 3 trials done" in out
    finally:
        journal.write_bytes(whole)


def test_a_finished_sweep_goes_on_with_a_larger_budget(run: Run) -> None:
    run("sweep", *SMALL)
    assert "3 of 3 trials" in run("status")
    out = run("resume", "budget.trials=4")
    assert "[  4/4] trial   3" in out
    assert "4 of 4 trials done, 0 under way" in run("status")
    # what a resume allowed holds for the next one, too
    assert "complete  its budget" not in out
    again = run("resume")
    assert "[  4/" not in again
    assert "complete  its budget was used up before: nothing ran; resume with a larger" in again
    assert "4 of 4 trials done, 0 under way" in run("status")


OWN_RECOVERY = """
fit: {epochs: 1, warmup_epochs: 0}
distillation: {weight: 0.5, hints: 0.1, hint_layers: [head]}
"""


def test_a_sweep_over_healing_goes_on_without_its_files(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "own" / "recovery" / "taught.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(OWN_RECOVERY)
    words = [word for word in SMALL if not word.startswith("recovery")]
    words += ["recoveries=[reconstruct,taught]", "importance.criteria=[l1,taylor]"]
    words += ["searcher=random", "budget.trials=8", "--config-dir", "own"]
    out = run("plan", *words)
    assert "recovery    reconstruct: least squares over 8 batches, batch norm over 16" in out
    assert "recovery    taught: batch norm over 16 batches, 1 epoch of sgd with a teacher" in out
    assert "2 groups, 900 specs" in out
    run("sweep", *words)
    file.unlink()
    run("resume", "budget.trials=9")
    (journal,) = tmp_path.glob(f"outputs/*/{JOURNAL_FILE}")
    record = read_journal(journal)
    outcomes = [o for o in last_told(record.events).values() if isinstance(o.outcome, Measurement)]
    assert len(outcomes) == 9
    assert {o.trial.spec.criterion for o in outcomes} == {"l1", "taylor"}
    trained = {o.trial.number: "train_loss" in o.outcome.metrics for o in outcomes}
    assert trained == {o.trial.number: o.trial.spec.recovery == "taught" for o in outcomes}
    assert set(trained.values()) == {True, False}


OWN_SCHEDULES = {
    "rounds": "fit: {epochs: 3, warmup_epochs: 0}\nschedule: {rounds: 2, shape: geometric}\n",
    "back": "fit: {epochs: 2, warmup_epochs: 0}\nschedule: {rounds: 2, rewind: true}\n",
}


def test_a_sweep_over_schedules_goes_on_with_its_own_early_weights(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "own" / "recovery").mkdir(parents=True)
    for name, text in OWN_SCHEDULES.items():
        (tmp_path / "own" / "recovery" / f"{name}.yaml").write_text(text)
    words = [word for word in SMALL if not word.startswith("recovery")]
    words += ["recoveries=[rounds,back,none]", "searcher=random", "budget.trials=7"]
    words += ["baseline.keep_epoch=0", "--config-dir", "own"]
    out = run("plan", *words)
    assert "rounds: 2 geometric rounds of batch norm over 16 batches, 1 epoch (2 in the last" in out
    assert "back: 2 cubic rounds of early weights, batch norm over 16 batches, 1 epoch of" in out
    run("sweep", *words)
    shutil.rmtree(tmp_path / "own")
    shutil.rmtree(tmp_path / "outputs" / "baselines")
    run("resume", "budget.trials=9")
    (journal,) = tmp_path.glob(f"outputs/*/{JOURNAL_FILE}")
    outcomes = last_told(read_journal(journal).events).values()
    assert len(outcomes) == 9
    assert all(isinstance(o.outcome, Measurement) for o in outcomes)
    assert {o.trial.spec.recovery for o in outcomes} == {"rounds", "back", "none"}


def test_a_sweep_of_before_there_were_recoveries_goes_on(run: Run, tmp_path: Path) -> None:
    run("sweep", *SMALL)
    (journal,) = tmp_path.glob(f"outputs/*/{JOURNAL_FILE}")
    first, *others = journal.read_bytes().splitlines(keepends=True)
    header = decode(first.rstrip(b"\n"))
    plan = (
        "{'none': FitPlan(epochs=0, lr=0.02, optimizer='sgd', momentum=0.9, weight_decay=0.0005, "
        "warmup_epochs=0.5, grad_clip=None, amp='off')}"
    )
    limits = "TrialLimits(recalibration_batches=16, importance_batches=8, time_limit_s=None)"
    header["facts"]["conditions"] |= {"recoveries": plan, "limits": limits}
    for key in ("reconstruction", "distillation", "schedule"):
        del header["facts"]["config"]["recovery"][key]
    del header["facts"]["config"]["recoveries"], header["facts"]["config"]["baseline"]["keep_epoch"]
    journal.write_bytes(b"".join([encode(header), *others]))
    assert "[  4/4] trial   3" in run("resume", "budget.trials=4")


def test_a_resume_lifts_a_limit(run: Run) -> None:
    run("sweep", *SMALL)
    out = run("resume", "budget.trials=null", "budget.wall_minutes=0.0001")
    assert "3 finished" in out
    assert "3 trials done, 0 under way" in run("status")


def test_a_resume_from_elsewhere_goes_on_in_the_sweeps_own_store(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("sweep", *SMALL, "tracking=mlflow")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run("resume", f"output={tmp_path / 'outputs'}", "budget.trials=4")
    assert not list(elsewhere.iterdir())
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "tiny")
    assert len(client.search_runs([experiment.experiment_id])) == 5


def test_sweeps_that_are_not_there(run: Run, outputs: Path) -> None:
    for command in ("status", "resume", "promote", "dashboard", "rollback"):
        assert "no sweep in" in run(command, code=2)
        assert "no sweep 'x'" in run(command, "sweep=x", f"output={outputs}", code=2)


def test_promotions_that_ask_for_two_things(run: Run, outputs: Path) -> None:
    def refused(*words: str) -> str:
        return run("promote", f"output={outputs}", *words, code=2)

    message = refused("select.trial=1", "select.min_speedup=2")
    assert "select.trial names one trial; leave select.max_accuracy_drop" in message
    assert "select.max_accuracy_drop is -1.0" in refused("select.max_accuracy_drop=-1")
    assert "no trial 99" in refused("select.trial=99")
    assert "no member of the front" in refused("select.min_speedup=1000")


def test_a_store_that_is_not_there_is_not_made(run: Run, outputs: Path) -> None:
    for command in ("dashboard", "rollback"):
        before = sorted(outputs.iterdir())
        message = run(command, f"output={outputs}", code=2)
        assert "there is no MLflow store" in message
        assert sorted(outputs.iterdir()) == before


def test_a_sweep_that_was_not_tracked_cannot_be_promoted(run: Run, outputs: Path) -> None:
    before = sorted(outputs.iterdir())
    message = run("promote", f"output={outputs}", code=2)
    assert "was not tracked, so it has no runs" in message
    assert sorted(outputs.iterdir()) == before


def test_ports_in_use_and_out_of_range(run: Run, outputs: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = run("dashboard", f"output={outputs}", f"port={port}", code=2)
    assert f"port {port} on 127.0.0.1 cannot be used" in message
    message = run("dashboard", f"output={outputs}", "port=70000", code=2)
    assert "a port lies between 1 and 65535" in message


def test_a_corrupt_journal_is_refused_and_left_as_it_is(run: Run, outputs: Path) -> None:
    (journal,) = outputs.glob(f"*/{JOURNAL_FILE}")
    whole = journal.read_text()
    lines = whole.splitlines(keepends=True)
    lines[2] = lines[2].replace("1", "2", 1)
    try:
        journal.write_text("".join(lines))
        for command in ("status", "resume", "promote"):
            message = run(command, f"sweep={journal.parent.name}", f"output={outputs}", code=2)
            assert "line 3" in message
            assert journal.read_text() == "".join(lines)
    finally:
        journal.write_text(whole)


def test_a_sweep_whose_trials_all_fail_alike_gives_up_with_1(run: Run) -> None:
    words = ["recovery=finetune", "recovery.fit.lr=1e30", "budget.trials=9"]
    message = run("sweep", *SMALL, *words, code=1)
    assert "none came through" in message
    assert "mend that, then resume the sweep" in message


def interrupted_at(sign: str, *words: str) -> str:
    """What a sweep still says after one Ctrl-C, sent when it first says `sign`."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", CODE, "sweep", *SMALL, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as sweep:
        assert sweep.stdout is not None
        for line in sweep.stdout:
            if sign in line:
                sweep.send_signal(signal.SIGINT)
                break
        rest = sweep.stdout.read()
    assert sweep.returncode == 130
    return rest


def test_ctrl_c_is_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    rest = interrupted_at("] trial", "budget.trials=500", "meter.max_s=0.5", f"output={tmp_path}")
    assert "finishing the running trials; Ctrl-C again ends now" in rest
    assert "autoprune resume sweep=tiny-" in rest


def test_ctrl_c_before_there_is_a_sweep_promises_no_resume(tmp_path: Path) -> None:
    rest = interrupted_at("baseline epoch", "baseline.fit.epochs=5000", f"output={tmp_path}")
    assert "autoprune: ended at once\n" in rest
    assert "resume" not in rest


def test_a_reader_that_goes_away_is_no_fault() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c 'from autoprune.cli import main; main()' | head -1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr
