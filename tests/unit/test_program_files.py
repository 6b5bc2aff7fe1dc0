"""Exported programs: what is one, and that nothing in the file is run to find out."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.programs import runnable
from autoprune.models import vit
from autoprune.orchestration.baseline import load_weights
from autoprune.orchestration.program_files import load_program


class Folded(nn.Module):
    """Branches, arithmetic on sizes, a keyword, a context and nested outputs, in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = torch.ones(4)

    def forward(self, x: torch.Tensor, *, shift: torch.Tensor) -> dict[str, Any]:
        with torch.no_grad():
            y = torch.einsum("bi,bj->bij", self.layer(x), x + shift)
        half = y.shape[0] // 2 + 1
        z = torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (y,))
        padded = torch.cat([z, z])[: 2 * half - 1]
        return {"a": nn.functional.gelu(padded, approximate="tanh"), "b": (x * self.scale, half)}


def saved(folder: Path, model: nn.Module, *args: Any, **kwargs: Any) -> Path:
    path = folder / "program.pt2"
    torch.export.save(torch.export.export(model.eval(), args, **kwargs), path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with a free batch size."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    folder = tmp_path_factory.mktemp("plain")
    return saved(folder, model, torch.randn(2, 3), dynamic_shapes=({0: Dim.AUTO},))


def test_programs_of_many_operators_are_read_and_compute_the_same(tmp_path: Path) -> None:
    x, shift = torch.randn(4, 4), torch.randn(4)
    model = Folded()
    free: Any = {"x": {0: Dim.DYNAMIC}, "shift": None}
    path = saved(tmp_path, model, x, kwargs={"shift": shift}, dynamic_shapes=free)
    found = runnable(load_program(path)).eval()
    for size in (4, 7):
        x = torch.randn(size, 4)
        expected, given = model(x, shift=shift), found(x, shift=shift)
        torch.testing.assert_close(given, expected)
    path = saved(tmp_path, vit(depth=1), torch.randn(2, 3, 32, 32))
    assert runnable(load_program(path))(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.pt2").write_bytes(b"noise")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("program/hello.txt", "hello")
    for name in ("noise.pt2", "other.pt2"):
        with pytest.raises(AutopruneError, match=f"{name} cannot be read as an exported program"):
            load_program(tmp_path / name)


class Touches:
    """What a pickle may hold: something that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def tampered(source: Path, target: Path, changes: dict[str, Callable[[bytes], bytes]]) -> Path:
    """A copy of an archive with other contents of the records whose names end as in `changes`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        names = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        for name in changes:
            names.setdefault(name, b"")
        for name, content in names.items():
            new.writestr(f"{root}/{name}", changes.get(name, lambda same: same)(content))
    return target


def edited(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """A change of a record that is JSON."""

    def edit(content: bytes) -> bytes:
        facts = json.loads(content)
        change(facts)
        return json.dumps(facts).encode()

    return edit


MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, SAMPLES = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"


def graph(change: Callable[[Any], None]) -> dict[str, Callable[[bytes], bytes]]:
    return {MODEL: edited(lambda facts: change(facts["graph_module"]))}


def first_target(target: str) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        module["graph"]["nodes"][0]["target"] = target

    return change


def attacks(touched: Path) -> dict[str, tuple[dict[str, Callable[[bytes], bytes]], str]]:
    """Ways into torch's loader or what it makes, and what is said of each."""
    code = f"__import__('pathlib').Path({str(touched)!r}).touch()"
    buffer = io.BytesIO()
    torch.save(Touches(touched), buffer)
    pickled = pickle.dumps(Touches(touched))

    def pickled_weight(config: Any) -> None:
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True

    def opaque(config: Any) -> None:
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False}
        config["config"]["x"] = entry | {"tensor_meta": None}

    def size(module: Any) -> None:
        module["graph"]["tensor_values"]["input"]["sizes"][0]["as_expr"]["expr_str"] = code

    def renamed(module: Any) -> None:
        module["signature"]["input_specs"][-1]["user_input"]["arg"]["as_tensor"]["name"] = code
        module["graph"]["inputs"][-1]["as_tensor"]["name"] = code

    def keyword(module: Any) -> None:
        module["graph"]["nodes"][0]["inputs"][0]["name"] = f"a={code}, b"

    def spec(name: str, context: object) -> Callable[[Any], None]:
        text = json.dumps([1, {"type": name, "context": context, "children_spec": []}])

        def change(module: Any) -> None:
            module["module_call_graph"][0]["signature"]["out_spec"] = text

        return change

    factory = {"default_factory_module": "antigravity", "default_factory_name": "x"}
    imports = {**factory, "dict_context": []}
    member = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
    return {
        "samples": ({SAMPLES: lambda _: buffer.getvalue()}, "cannot be read as an exported"),
        "weights": (
            {"data/weights/weight_0": lambda _: buffer.getvalue(), WEIGHTS: edited(pickled_weight)},
            "'0.weight', which is pickled",
        ),
        "opaque": (
            {"data/constants/opaque_obj_0": lambda _: pickled, CONSTANTS: edited(opaque)},
            "'x', which is pickled",
        ),
        "library": (
            {"data/aotinductor/model/model.so": lambda _: b"\x7fELF"},
            "the record 'data/aotinductor/model/model.so'",
        ),
        "function": (graph(first_target("torch.os.system")), "target 'torch.os.system'"),
        "library call": (
            graph(first_target("torch.ops.load_library")),
            "target 'torch.ops.load_library'",
        ),
        "attribute": (
            graph(first_target("torch.ops.aten.linear.__class__")),
            "target 'torch.ops.aten.linear.__class__'",
        ),
        "file": (
            graph(first_target("torch.ops.aten.from_file.default")),
            "target 'torch.ops.aten.from_file.default'",
        ),
        "size": (graph(size), 'expr_str "__import__'),
        "name": (graph(renamed), 'name "__import__'),
        "keyword": (graph(keyword), 'name "a=__import__'),
        "factory": (graph(spec("collections.defaultdict", imports)), "out_spec "),
        "enum": (graph(spec("builtins.dict", member)), "out_spec "),
        "keys": (graph(spec("builtins.dict", json.dumps([f"x': {code}, 'y"]))), "out_spec "),
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_no_code_from_a_file_is_run(attack: str, plain: Path, tmp_path: Path) -> None:
    touched = tmp_path / "ran"
    changes, message = attacks(touched)[attack]
    hostile = tampered(plain, tmp_path / "hostile.pt2", changes)
    with pytest.raises(AutopruneError) as caught:
        runnable(load_program(hostile))
    assert message in str(caught.value)
    with pytest.raises(AutopruneError):
        load_weights(nn.Linear(1, 1), hostile)
    assert not touched.exists()


def test_guards_are_not_evaluated(plain: Path, tmp_path: Path) -> None:
    touched = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(touched)!r}).touch()"
    changes = {MODEL: edited(lambda facts: facts.update(guards_code=[code]))}
    hostile = tampered(plain, tmp_path / "hostile.pt2", changes)
    assert runnable(load_program(hostile))(torch.randn(5, 3)).shape == (5, 2)
    assert not touched.exists()


def test_a_copy_that_nobody_tampered_with_is_read(plain: Path, tmp_path: Path) -> None:
    copied = tampered(plain, tmp_path / "copy.pt2", {})
    x = torch.randn(3, 3)
    assert torch.equal(runnable(load_program(copied))(x), runnable(load_program(plain))(x))
