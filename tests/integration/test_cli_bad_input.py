"""Every fault a user can make: one clear message, exit code 2, and nothing left behind."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoprune.cli import main
from autoprune.models import mlp

SMALL = [
    *("model=mlp", "model.width=16", "model.image_side=8", "data.side=8"),
    *("baseline.fit.epochs=1", "baseline.fit.warmup_epochs=0", "recovery=none"),
    *("meter.max_s=0.1", "meter.gate=false", "budget.trials=2", "executor=inline"),
]

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Runs a command line that has to be refused, and returns its message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert all(line.startswith("autoprune: ") for line in err.splitlines()), err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def test_commands_and_options(refused: Refused) -> None:
    assert "no command 'swep'; did you mean 'sweep'?" in refused("swep")
    assert "study: choose from sparsity" in refused("study")
    assert "study sparsty: did you mean 'sparsity'?" in refused("study", "sparsty")
    assert "no option '--jsn'; did you mean '--json'?" in refused("status", "--jsn")
    assert "sweep has no option '--json'" in refused("sweep", "--json")
    assert "-m: autoprune has no multirun" in refused("sweep", "-m", "seed=1,2")
    assert "run the command once a value" in refused("sweep", "seed=1,2")
    message = refused("compare", "searchers=uniform,random")
    assert "write several values as a list, 'searchers=[uniform,random]'" in message
    assert "--config-dir names no folder" in refused("sweep", "--config-dir")
    assert "--config-dir nowhere: no such folder" in refused("sweep", "--config-dir", "nowhere")
    assert "write -sc install=SHELL" in refused("-sc", "install=tcsh")
    assert "'model' cannot be read; write key=value" in refused("sweep", "model")
    assert "--run does not go with --help" in refused("sweep", "--help", "--run")


def test_keys_and_options_with_the_near_miss_and_all_at_once(refused: Refused) -> None:
    message = refused(
        *("sweep", "modle=vgg", "model=vgh", "budget.trails=3", "budget.trials=many"),
        *("space.min_kep=1", "uniform_first=0.5", "+sedd=3"),
    )
    assert "modle=vgg: there is no key 'modle'; did you mean 'model'?" in message
    assert "model=vgh: model has no option 'vgh'; did you mean 'vgg'?" in message
    assert "there is no key 'budget.trails'; did you mean 'budget.trials'?" in message
    assert "'many' of type 'str' could not be converted to Integer; by default it is 24" in message
    assert "there is no key 'space.min_kep'; did you mean 'space.min_kept'?" in message
    assert "uniform_first=0.5: Invalid value assigned: float is not a ListConfig" in message
    assert len(message.splitlines()) == 6
    assert "sedd: there is no such key, and nothing reads it; did you mean 'seed'?" in refused(
        "sweep", "+sedd=3"
    )
    constraint = refused("sweep", "objective.constraints=[{metrc: speedup, low: 2}]")
    assert "Key 'metrc' not in 'ConstraintConfig'" in constraint


def test_targets_and_their_arguments_all_at_once(refused: Refused) -> None:
    message = refused(
        *("plan", *SMALL, "+model.depht=3", "data._target_=autoprune.data.digts"),
        *("+task.augmnt=none", "searcher._target_=autoprune.serchers.RandomSearcher"),
        "meter.runtime._target_=autoprune.measurement.runtimes",
    )
    assert "autoprune.models.mlp takes no argument 'depht'; did you mean 'depth'?" in message
    assert "data._target_ 'autoprune.data.digts' cannot be imported" in message
    assert "in autoprune.data did you mean 'digits'?" in message
    assert "Classification takes no argument 'augmnt'; did you mean 'augment'?" in message
    assert "in autoprune did you mean 'searchers'?" in message
    assert "'autoprune.measurement.runtimes' is a module; name a class or a function" in message


def test_jobs_that_cannot_be_sent(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    message = refused(
        *("submit", "executor=inline", "name=a/b", "stop_s=0"),
        "tracking.uri=http://me:hush@mlflow.example.com",
    )
    assert "name='a/b': a sweep is named with letters" in message
    assert "stop_s is 0" in message
    assert "executor.kind=inline runs trials in this process" in message
    assert "output=outputs would be a folder inside the job's" in message
    assert "tracking.uri=http://me:***@mlflow.example.com holds a password" in message
    assert "hush" not in message
    assert "executor.address is not set; name the cluster's dashboard" in message
    there = ("output=/outputs", "executor.address=http://127.0.0.1:1")
    message = refused("submit", *there, "resume=latest", "searcher=tpe", "budget.trials=9")
    assert "goes on with a sweep as it was begun; leave out searcher, or start" in message
    assert "resume= names no sweep; write resume=latest" in refused("submit", *there, "resume=")
    message = refused("submit", *there, "executor.cpus=-1", "budget.trials=0")
    assert "executor.cpus is -1; choose" in message
    assert "budget.trials is 0; choose more than 0" in message
    message = refused("submit", *there, "--config-dir", "/")
    assert "--config-dir / is not in the folder that goes to the cluster" in message
    assert "executor.address is not set" in refused("logs", "executor.address=")
    for words in (["submit", *there], ["logs", there[1]], ["stop", there[1]], ["status", there[1]]):
        message = refused(*words)
        assert "no Ray cluster takes jobs at executor.address='http://127.0.0.1:1'" in message
        assert "name the dashboard of one" in message


def test_the_doctor_takes_a_sweeps_line_and_finds_its_faults(refused: Refused) -> None:
    assert "doctor has no option '--jsn'; did you mean '--json'?" in refused("doctor", "--jsn")
    message = refused("doctor", "executor.slots=0", "meter.max_s=0", "name=a/b", "meter.where=bech")
    assert "executor.slots is 0; choose 1 or more" in message
    assert "meter.max_s is 0" in message
    assert "name='a/b': a sweep is named with letters" in message
    assert "did you mean 'bench'?" in message
    assert "there is no key 'outptu'; did you mean 'output'?" in refused("doctor", "outptu=x")
    assert "executor.device=gpu: no such device" in refused("doctor", "executor.device=gpu")


def test_a_place_to_measure_that_is_none(refused: Refused) -> None:
    message = refused("plan", *SMALL, "meter.where=bech")
    assert "place to measure 'bech' is not known; did you mean 'bench'?" in message
    message = refused("plan", *SMALL, "meter.where=bench")
    assert (
        "where=bench measures on other nodes of a cluster, and no cluster is named; set" in message
    )


def test_targets_that_give_something_else(refused: Refused) -> None:
    message = refused("plan", *SMALL, "model._target_=tests.odd.number", "~model.depth")
    assert "model: tests.odd.number gave a int; it must give an nn.Module" in message
    message = refused("plan", *SMALL, "model._target_=tests.odd.raises")
    assert "model: tests.odd.raises raised RuntimeError: the moon is full" in message
    message = refused("plan", *SMALL, "model._target_=no_such_module.Net")
    assert "modules are found in the current folder" in message
    message = refused("plan", *SMALL, "model._target_=torch.nn.Linear")
    assert "torch.nn.Linear needs this argument; set +model.in_features=..." in message
    odd = ["searcher._target_=tests.odd.searcher", "~searcher.sampler", "~searcher.options"]
    message = refused("plan", *SMALL, *odd)
    assert "the searcher is a tuple without ask, tell" in message
    message = refused("plan", *SMALL, "meter.runtime._target_=autoprune.models.mlp")
    assert "takes no argument 'threads'" in message


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("Fails", "fails on the example input of shape (1, 1, 8, 8)"),
        ("OneLayer", "has no prunable group (head: its units are part of the network's output)"),
        ("Detached", "it cannot be traced: autograd reaches no layer from its output"),
    ],
)
def test_networks(refused: Refused, network: str, message: str) -> None:
    for command in ("plan", "sweep"):
        assert message in refused(command, *SMALL, f"model._target_=tests.odd.{network}")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("negative", "split 'train' has the label -1"),
        ("not_finite", "inputs hold NaN or infinity"),
        ("shapes", "give all splits one shape"),
        ("lengths", "20 inputs and 19 targets"),
    ],
)
def test_data(refused: Refused, fault: str, message: str) -> None:
    words = ["data._target_=tests.odd.splits", f"+data.fault={fault}"]
    assert message in refused("sweep", *SMALL, *words)


def test_labels_and_shapes_that_do_not_fit_the_network(refused: Refused) -> None:
    for command in ("plan", "sweep"):
        message = refused(command, *SMALL, "model.num_classes=5")
        assert "labels lie in 0..9 and the network scores 5 classes" in message
        assert "example" in refused(command, *SMALL, "data.side=9")


def test_checkpoints(refused: Refused, tmp_path: Path) -> None:
    def given(path: str) -> str:
        return refused("sweep", *SMALL, "baseline=checkpoint", f"baseline.checkpoint={path}")

    words = [word for word in SMALL if not word.startswith("baseline")]
    assert "baseline.checkpoint has no value" in refused("sweep", *words, "baseline=checkpoint")
    assert "checkpoint nothing.pt does not exist" in given("nothing.pt")
    other = mlp(width=17, depth=2, in_channels=1, num_classes=10, image_side=8)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    assert "is not of this network" in given("other.pt")
    (tmp_path / "noise.pt").write_bytes(b"noise")
    assert "cannot be read as a state dict" in given("noise.pt")
    assert "holds no weights" in given(".")
    assert "there is no MLflow store" in given("models:/digits_vgg@champion")


@pytest.mark.parametrize("command", ["plan", "measure"])
def test_a_seed_that_torch_does_not_take(refused: Refused, command: str) -> None:
    words = ("candidate=small.pt",) if command == "measure" else ()
    message = refused(command, *SMALL, *words, f"seed={2**70}")
    assert f"seed is {2**70}; choose 0 or more, below 2**63" in message


def test_ranges_all_at_once_and_by_the_key_that_was_written(refused: Refused) -> None:
    message = refused(
        *("sweep", *SMALL, "seed=-1", "name=a/b", "uniform_first=[0.5,2]", "space.min_kept=0.9"),
        *("space.max_kept=0.5", "space.overrides=[{pattern: x, step: 0}]", "executor.cpus=0"),
        *("executor.gpus=-1", "executor.device=gpu", "executor.on_interrupt=finsh"),
        *("budget.trials=0", "budget.wall_minutes=-1", "budget.trial_limit_s=0"),
        "executor.storage=sweeps",
        *("importance.criteria=[l1,l3]", "importance.batches=0", "meter.batch_sizes=[0]"),
        "meter.gate_folder=gate",
        *("recovery.recalibration_batches=0", "recovery.fit.epochs=-1", "tracking.keep_models=al"),
        *("baseline.fit.lr=0", "objective.constraints=[{metric: speedup, low: 3, high: 2}]"),
    )
    for fault in (
        "seed is -1; choose 0 or more",
        "name='a/b': a sweep is named with letters",
        "uniform_first has [2.0]; choose kept ratios in (0, 1]",
        "min_kept 0.9 and max_kept 0.5; choose 0 < min_kept <= max_kept <= 1",
        "bounds of 'x': step 0; choose 1 or more",
        "executor.cpus is 0; choose 1 or more",
        "executor.gpus is -1.0; choose 0 or more",
        "executor.device=gpu: no such device; choose cpu",
        "executor.on_interrupt=finsh: did you mean 'finish'?",
        "executor.storage='sweeps': name a folder from the root on, like /mnt/sweeps, or",
        "budget.trials is 0; choose more than 0",
        "budget.wall_minutes is -1.0; choose more than 0",
        "budget.trial_limit_s is 0.0; choose more than 0",
        "criterion 'l3' is not known",
        "importance.batches is 0; choose 1 or more",
        "batch_sizes is [0]; name each size once",
        "meter.gate_folder is 'gate'; name it from the root on",
        "recovery.recalibration_batches is 0; choose 1 or more",
        "recovery.fit: epochs is -1; choose 0 or more",
        "tracking.keep_models=al: did you mean 'all'?",
        "baseline.fit: lr is 0.0; choose a positive number",
        "constraint on 'speedup': 3.0..2.0",
    ):
        assert fault in message
    message = refused("sweep", *SMALL, "data.side=nan", "budget.wall_minutes=inf")
    assert "data.side is nan; choose a finite number\n" in message
    assert "budget.wall_minutes is inf; choose a finite number, or null for no bound\n" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("precisions=[fp32,int8]",),
            "precisions [fp32, int8]: runtime 'eager' takes networks in fp32 only; set "
            'meter=onnxruntime (from Python, runtime="onnxruntime") on the CPU, or precisions to '
            "fp32 alone",
        ),
        (
            ("precisions=[int8]", "meter=onnxruntime_int8"),
            "precisions [int8]: runtime 'onnx int8' takes networks in fp32 only; set meter=",
        ),
        (("precisions=[int4]",), "precision 'int4' is not known; did you mean 'int8'? Otherwise"),
        (("precisions=[]",), "precisions is empty; name at least one, such as fp32"),
        (
            ("precisions=[int8,int8]", "meter=onnxruntime"),
            "precisions names int8 more than once; name each once",
        ),
        (("calibration_batches=0",), "calibration_batches is 0; choose 1 or more"),
        (("tracking.export=[onxx]",), "tracking.export: format 'onxx' is not known; did you mean"),
    ],
)
def test_quantisation(refused: Refused, words: tuple[str, ...], message: str) -> None:
    assert message in refused("sweep", *SMALL, *words)


def test_healing(refused: Refused) -> None:
    message = refused(
        *("plan", *SMALL, "recovery.distillation.weight=2", "recovery.distillation.temperature=0"),
        *("recovery.reconstruction.ridge=0", "recovery.reconstruction.batches=-1"),
        *("recovery.recalibration_batches=0", "recovery.distillation.hint_layers=[head]"),
    )
    assert message.splitlines() == [
        "autoprune: recovery.recalibration_batches is 0; choose 1 or more",
        "autoprune: recovery.reconstruction.batches is -1; choose 0 or more",
        "autoprune: recovery.reconstruction: ridge is 0.0; choose a positive number",
        "autoprune: recovery.distillation: weight is 2.0; choose a number in [0, 1]",
        "autoprune: recovery.distillation: temperature is 0.0; choose a positive number",
        "autoprune: recovery.distillation: hints is 0 and hint_layers is ['head']; give both, or "
        "neither",
    ]
    message = refused("plan", *SMALL, "recovery.distillation.weight=0.5")
    assert "recovery: distillation is training, and fit.epochs is 0; choose 1 epoch" in message
    hints = ("recovery.distillation.hints=1", "recovery.distillation.hint_layers=[conv*]")
    message = refused("plan", *SMALL, "recovery=distill", *hints)
    assert "hint_layers: 'conv*' matches no layer; the layers are hidden.0" in message


def test_sparse_training(refused: Refused) -> None:
    message = refused(
        *("plan", *SMALL, "recovery.sparsity.method=group_laso", "recovery.sparsity.budget=mac"),
        *("recovery.sparsity.epochs=-1", "recovery.sparsity.strength=0"),
    )
    assert message.splitlines() == [
        "autoprune: recovery.sparsity.epochs is -1; choose 0 or more",
        "autoprune: recovery.sparsity: method 'group_laso' is not known; did you mean "
        "'group_lasso'? Otherwise choose from ['group_lasso', 'low_rank', 'slimming']",
        "autoprune: recovery.sparsity: budget 'mac' is not known; did you mean 'macs'? Otherwise "
        "choose from ['latency', 'macs', 'none']",
        "autoprune: recovery.sparsity: strength is 0.0; choose a positive number",
    ]
    message = refused(
        "plan", *SMALL, "recovery.sparsity.epochs=2", "recovery.sparsity.budget=laten"
    )
    assert "did you mean 'latency'?" in message
    timed = ("recovery.sparsity.epochs=2", "recovery.sparsity.budget=latency")
    assert "a profile predicts, and this sweep has none" in refused("plan", *SMALL, *timed)


def test_a_range_over_healing(refused: Refused, tmp_path: Path) -> None:
    words = [word for word in SMALL if not word.startswith("recovery")]
    message = refused("sweep", *words, "recoveries=[finetun,none,rewynd]")
    assert "recoveries: there is no 'rewynd'; did you mean 'rewind'?" in message
    assert "recoveries: there is no 'finetun'; did you mean 'finetune'? (choose from " in message
    message = refused("sweep", *words, "recoveries=[none,none]")
    assert "recoveries names none more than once; name each once, and give one with" in message
    message = refused("sweep", *SMALL, "recovery.fit.lr=1", "recoveries=[none,finetune]")
    assert "nothing reads recovery, recovery.fit.lr; put values into options of your" in message
    assert "or set recoveries=[]" in message
    message = refused("sweep", *words, "recoveries=none,finetune")
    assert "write several values as a list, 'recoveries=[none,finetune]'" in message
    (tmp_path / "recovery").mkdir()
    (tmp_path / "recovery" / "own.yaml").write_text(
        "fit: {epochs: -1}\nreconstruction: {ridge: -2}\nrecalibration_batches: 0\n"
    )
    message = refused("plan", *words, "--config-dir", ".", "recoveries=[own,none]", "seed=-1")
    assert message.splitlines() == [
        "autoprune: seed is -1; choose 0 or more, below 2**63",
        "autoprune: recoveries.own.recalibration_batches is 0; choose 1 or more",
        "autoprune: recoveries.own.fit: epochs is -1; choose 0 or more",
        "autoprune: recoveries.own.reconstruction: ridge is -2.0; choose a positive number",
    ]


def test_schedules(refused: Refused, tmp_path: Path) -> None:
    message = refused("sweep", *SMALL, "recovery=iterative", "recovery.schedule.rounds=0")
    assert message.splitlines() == [
        "autoprune: recovery.schedule: rounds is 0; choose 1, which is one shot, or more"
    ]
    message = refused("plan", *SMALL, "recovery=iterative", "recovery.schedule.shape=geometrik")
    assert "recovery.schedule: shape 'geometrik' is not known; did you mean 'geometric'?" in message
    message = refused("plan", *SMALL, "recovery=iterative", "recovery.schedule.rounds=9")
    assert "recovery: schedule has 9 rounds, and fit.epochs is 8; choose 9 epochs or" in message
    message = refused("plan", *SMALL, "recovery=rewind", "recovery.reconstruction.batches=2")
    assert "recovery: reconstruction fits weights that schedule.rewind sets back; choose" in message
    message = refused("plan", *SMALL, "recovery=iterative", "ladder=asha", "ladder.epochs=[0,4]")
    assert "ladder.epochs [4]: recovery 'iterative_finetune' cuts in 4 rounds, and up to" in message
    words = [word for word in SMALL if not word.startswith("recovery")]
    (tmp_path / "recovery").mkdir()
    (tmp_path / "recovery" / "own.yaml").write_text("schedule: {rounds: 0}\n")
    message = refused("plan", *words, "--config-dir", ".", "recoveries=[own,none]")
    assert "recoveries.own.schedule: rounds is 0; choose 1, which is one shot, or more" in message


def test_early_weights(refused: Refused) -> None:
    words = ["sweep", *SMALL, "recovery=rewind"]
    message = refused(*words, "baseline=checkpoint", "baseline.checkpoint=weights.safetensors")
    assert message.splitlines() == [
        "autoprune: recovery 'rewind' rewinds to early weights of the baseline, and "
        "baseline.checkpoint has none; let it be trained (baseline=train), or choose a recovery "
        "without schedule.rewind"
    ]
    message = refused(*words, "baseline.keep_epoch=null", "seed=-1")
    assert "baseline.keep_epoch is null, which keeps none; set it to an epoch" in message
    assert "seed is -1" in message
    assert "baseline.keep_epoch is 2 of 1 epochs; set a smaller one, or choose" in refused(*words)
    message = refused("plan", *SMALL, "baseline.keep_epoch=-1")
    assert "baseline.keep_epoch is -1; choose 0 or more" in message


def test_rules_across_fields(refused: Refused) -> None:
    message = refused("sweep", *SMALL, "baseline.fit.warmup_epochs=3", "importance.criteria=[]")
    assert "baseline.fit.warmup_epochs is 3.0 of 1 epochs; choose at most 1" in message
    assert "importance.criteria is empty" in message
    both = "objective.constraints=[{metric: speedup, low: 3}, {metric: speedup, high: 2}]"
    message = refused("sweep", *SMALL, both)
    assert "speedup >= 3 and speedup <= 2; nothing meets them all" in message
    message = refused("sweep", *SMALL, "objective.metrics=[main,sped]")
    assert "metric 'sped' is not known; did you mean 'speedup'?" in message
    assert "at least one" in refused("sweep", *SMALL, "objective.metrics=[]")
    message = refused("sweep", *SMALL, "+objective.reference.params=3")
    assert "reference names ['params'], which are no objectives" in message
    message = refused("sweep", *SMALL, "budget.trials=null")
    assert "the budget is unbounded; set budget.trials or a time limit" in message
    twice = ("importance.criteria=[l1,l1,l2]", "precisions=[fp32,fp32]")
    message = refused("sweep", *SMALL, *twice)
    assert message.splitlines() == [
        "autoprune: importance.criteria names l1 more than once; name each once",
        "autoprune: precisions names fp32 more than once; name each once",
    ]
    message = refused("sweep", *SMALL, "space.kinds=[neurons,neurons]")
    assert "space.kinds names neurons more than once; name each once" in message
    message = refused("sweep", *SMALL, "space.exclude=[conv*]")
    assert "pattern 'conv*' matches no group; the groups are" in message


def test_a_searcher_is_tried_before_the_baseline_is_trained(refused: Refused) -> None:
    assert "did you mean 'nsga" in refused("sweep", *SMALL, "searcher.sampler=nsgaa")
    options = "+searcher.options.population_sise=4"
    assert "'population_size'" in refused("sweep", *SMALL, options)
    message = refused("sweep", *SMALL, "searcher.options.population_sise=4")
    assert "did you mean 'searcher.options.population_size'?" in message
    assert "(+searcher.options.population_sise=4 adds an argument)" in message
    group = ["searcher=tpe", "searcher.options.group=true", "searcher.options.multivariate=false"]
    assert "can only be enabled when ``multivariate``" in refused("sweep", *SMALL, *group)


UNEXPORTABLE = """
import torch
from torch import nn

class Special(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        hidden = self.body(x.flatten(1)).relu()
        return self.head(torch.special.i1e(hidden))
"""


def test_criterion_and_runtime_are_tried_before_the_baseline_is_trained(
    refused: Refused, tmp_path: Path
) -> None:
    message = refused("sweep", *SMALL, "importance=bn_scale", "baseline.fit.epochs=100000")
    assert "criterion 'bn_scale' reads the scales of batch norms and" in message
    message = refused("sweep", *SMALL, "importance=se_gate", "baseline.fit.epochs=100000")
    assert "criterion 'se_gate' reads squeeze-and-excite gates and" in message
    message = refused("sweep", *SMALL, "searcher=ranked", "searcher.normalisation=means")
    assert "normalisation 'means' is not known; did you mean 'mean'" in message
    (tmp_path / "special.py").write_text(UNEXPORTABLE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "special.yaml").write_text("_target_: special.Special")
    small = [word for word in SMALL if not word.startswith("model")]
    words = [*small, "model=special", "meter=onnxruntime", "baseline.fit.epochs=100000"]
    message = refused("sweep", "--config-dir", ".", *words)
    assert "'prims.bessel_i1e' has no ONNX form" in message
    assert "choose the runtime eager" in message


def test_storages_that_take_nothing(refused: Refused) -> None:
    def given(place: str) -> str:
        return refused("sweep", *SMALL, f"executor.storage={place}")

    assert "executor.storage: cannot write to /nowhere (FileNotFoundError" in given("/nowhere")
    message = given("ftp://me:secret@host/sweeps")
    assert "executor.storage='ftp://me:***@host/sweeps' holds a password" in message
    assert "secret" not in message


def test_more_gpus_than_there_are(refused: Refused) -> None:
    words = [word for word in SMALL if not word.startswith("executor")]
    message = refused("sweep", *words, "executor.slots=2", "executor.gpus=64")
    assert "no node can hold a trial, which asks for 1 CPU, 64 GPUs; there are this" in message


ODD = """
import torch
from torch import nn
from autoprune.data import Splits, TensorSplit, digits

def pair():
    found = digits(side=8)
    return found.train, found.val

def strange():
    found = digits(side=8)
    return Splits(found.train, found.val, TensorSplit(found.test.inputs, found.test.targets + 5))

class OneByOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(x.reshape(1, -1)).relu())

def scripted():
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 10)))
"""


@pytest.mark.parametrize(
    ("group", "target", "message"),
    [
        ("data", "pair", "data is a tuple; give (return) autoprune.data.Splits with"),
        ("data", "strange", "labels of 'test' lie in 5..14 and those of 'train' up to 9; give"),
        ("data", "missing", "data._target_ 'odd_things.missing' cannot be imported"),
        ("model", "OneByOne", "OneByOne and the task do not go together: on a first batch they"),
        ("model", "scripted", "is compiled by TorchScript, whose layers cannot be cut; give the"),
    ],
)
def test_what_users_bring(
    refused: Refused, tmp_path: Path, group: str, target: str, message: str
) -> None:
    (tmp_path / "odd_things.py").write_text(ODD)
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(f"_target_: odd_things.{target}")
    small = [word for word in SMALL if not word.startswith(f"{group}.") or group == "data"]
    words = [w for w in small if not (group == "model" and w.startswith("model"))]
    words = [w for w in words if not (group == "data" and w.startswith("data"))]
    said = refused("sweep", "--config-dir", ".", *words, f"{group}=mine")
    assert message in said


@pytest.mark.parametrize("word", ["model=null", "data=3", "experiment=null", "searcher=[tpe,gp]"])
def test_options_are_chosen_by_their_names(refused: Refused, word: str) -> None:
    group = word.partition("=")[0]
    assert f"{group} takes one option by its name" in refused("sweep", *SMALL, word)


def test_a_file_that_is_no_yaml_is_named_with_the_line(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "bad.yaml").write_text("_target_: x.Y\n  z: : y\n")
    message = refused("sweep", "--config-dir", ".", "model=bad")
    assert "line 2: mapping values are not allowed here; mend the file" in message


def test_places_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file is here")
    for output in ("taken", "taken/below", "/proc/outputs"):
        message = refused("sweep", *SMALL, f"output={output}")
        assert "cannot write to the output folder" in message
        assert "set output=FOLDER" in message
    uri = f"tracking.uri=sqlite:///{tmp_path}/taken/mlflow.db"
    assert "taken" in refused("sweep", *SMALL, uri)


def test_tracking_is_tried_before_the_baseline_is_trained(refused: Refused) -> None:
    message = refused("sweep", *SMALL, "tracking.uri=htp://nowhere")
    assert "'htp://nowhere' is not a tracking server or database; use http(s)" in message
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        message = refused("sweep", *SMALL, f"tracking.uri=http://127.0.0.1:{port}")
    assert "no MLflow store answers" in message
    assert "start the server or set tracking.uri" in message


def test_a_module_that_ends_the_process(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "ends_at_once.py").write_text("raise SystemExit(0)")
    message = refused("plan", *SMALL, "model._target_=ends_at_once.net")
    assert "'ends_at_once.net' cannot be imported (SystemExit: 0); name module" in message


def test_a_folder_that_is_gone(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder is no longer there; change to one that is" in refused("status")


def test_a_file_that_is_named_like_a_library(tmp_path: Path) -> None:
    """In a process of its own, for this one has the library already."""
    (tmp_path / "mlflow.py").touch()
    program = "import sys; from autoprune.cli import main; sys.exit(main(['plan']))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path / 'mlflow.py'} stands in the place of a package of that name" in done.stderr
