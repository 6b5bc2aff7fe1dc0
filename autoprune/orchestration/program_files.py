"""Exported programs (``.pt2``), read without the code that such a file may hold.

`torch.export.load` (torch 2.13) unpickles what an archive asks it to, loads compiled libraries,
evaluates expressions, calls any function of torch that a graph names, and puts names into source
text that it runs. So an archive is loaded only where it is known, before, to hold nothing but
tensors and a graph of torch's own operators.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.measurement.runtimes.silence import silence
from autoprune.orchestration.environment import environment
from autoprune.orchestration.untrusted import UntrustedError, check_archive, check_file, memory

SUFFIX = ".pt2"
MLFLOW_PROGRAM = "data/model.pt2"
"""Where a model's folder has it that MLflow logged."""

TENSORS_ONLY = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
"""What keeps `torch.load` from unpickling anything else, whatever its caller says."""

_PLACES = ("models/", "data/weights/", "data/constants/", "data/sample_inputs/", "extra/", ".data/")
_TEXTS = ("archive_format", "archive_version", "byteorder", "version")
_RAW = ("weight_", "tensor_")

_NAME = re.compile(r"(\w+(\.\w+)*)?")
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)")
_LIBRARIES = ("aten", "prims", "quantized", "quantized_decomposed", "torchvision")
_FILES = ("from_file", "save")
_HIGHER = (
    *("wrap_with_set_grad_enabled", "wrap_with_autocast", "cond", "while_loop", "map_impl"),
    *("scan", "associative_scan"),
)
_ARITHMETIC = (
    *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod"),
    *("pow", "truediv", "and_", "or_", "lshift", "rshift", "getitem"),
)
_SYMBOLIC = ("sym_not", "sym_int", "sym_float", "sym_ite", "sym_max", "sym_min", "sym_sqrt")
_PLAIN = {
    *(f"_operator.{name}" for name in _ARITHMETIC),
    *(f"torch.{name}" for name in _SYMBOLIC),
    *(f"torch.ops.higher_order.{name}" for name in _HIGHER),
    *(f"math.{name}" for name in ("trunc", "floor", "ceil", "sqrt")),
}

_FREE = ("metadata", "guards_code", "as_string", "as_strings", "torch_version")
"""Parts of a graph that nobody evaluates: remarks, guards (which are left out), plain texts."""

_FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "floor"),
    *("ceiling", "Mod", "Equality", "Unequality", "StrictLessThan", "LessThan", "And", "Or", "Not"),
    *("StrictGreaterThan", "GreaterThan", "FloorDiv", "ModularIndexing", "Where", "PythonMod"),
    *("CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural"),
    *("FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt"),
    *("RoundDecimal", "ToFloat", "Identity"),
}
_SYMBOL = re.compile(r"[a-z]+\d+|oo|int_oo|true|false")
_ATOM = re.compile(r"[A-Za-z]\w*|[-+]?[\d.]+(e[-+]?\d+)?")
_ARITHMETIC_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.keyword, ast.Load),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def load_program(path: Path) -> torch.export.ExportedProgram:
    """The one program in an archive. No code from the file is run.

    Raises AutopruneError for a file that is no such archive, and for one that could run code, or
    that unpacks to more than it is.
    """
    try:
        check_file(path, most=memory())
        check_archive(path)
        with silence():
            refused = next(_faults(PT2ArchiveReader(str(path))), None)
            if refused is None:
                with environment(TENSORS_ONLY):
                    (program,) = load_pt2(str(path)).exported_programs.values()
                return program
    except UntrustedError:
        raise
    except Exception as error:  # torch raises what the zip, the JSON or the tensors gave it
        raise AutopruneError(
            f"{path} cannot be read as an exported program ({type(error).__name__}: "
            f"{first_line(error)}); save it with torch.export.save, by this version of torch"
        ) from error
    raise AutopruneError(
        f"{path} holds more than tensors and operators of torch: {refused}; reading it could run "
        "code, so export the network again, from its own code"
    )


def _faults(archive: Any) -> Iterator[str]:
    """What in an archive could run code when it is read, or when its graph is."""
    for name in archive.get_file_names():
        if name.startswith(("data/weights/", "data/constants/")) and name.endswith("_config.json"):
            yield from _payload_faults(json.loads(archive.read_string(name)))
        elif name.startswith("models/"):
            yield from _graph_faults(json.loads(archive.read_string(name)), "")
        elif not name.startswith(_PLACES) and name not in _TEXTS:
            yield f"the record {name!r}"


def _payload_faults(config: Any) -> Iterator[str]:
    for name, entry in config["config"].items():
        if entry["use_pickle"] is not False or not entry["path_name"].startswith(_RAW):
            yield f"{name!r}, which is pickled"


def _graph_faults(part: Any, key: str) -> Iterator[str]:
    if isinstance(part, dict):
        for name, inner in part.items():
            if name in _FREE:
                continue
            if not _NAME.fullmatch(name):
                yield f"the name {name[:80]!r}"
            if name == "as_custom_obj":
                yield "an object of a class of its own"
            yield from _graph_faults(inner, name)
    elif isinstance(part, list):
        for inner in part:
            yield from _graph_faults(inner, key)
    elif isinstance(part, str):
        if key in ("target", "as_operator"):
            fits = _known_operator(part)
        elif key == "expr_str":
            fits = _arithmetic(part)
        elif key in ("in_spec", "out_spec"):
            fits = _plain_spec(part)
        else:
            fits = _NAME.fullmatch(part) is not None
        if not fits:
            yield f"{key} {part[:80]!r}"


def _known_operator(target: str) -> bool:
    found = _OPERATOR.fullmatch(target)
    if found is None:
        return target in _PLAIN
    library, name, overload = found.groups()
    if library not in _LIBRARIES or name in _FILES:
        return False
    # not what else torch.ops has attributes for, and not TorchScript's own operators
    operator = getattr(getattr(getattr(torch.ops, library), name, None), overload, None)
    return isinstance(operator, torch._ops.OpOverload)


def _arithmetic(text: str) -> bool:
    """Whether an expression of symbolic sizes, which sympy evaluates, is only that."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError):
        return False
    return all(map(_arithmetic_node, nodes))


def _arithmetic_node(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in _FUNCTIONS
        case ast.Name(id=name):
            return name in _FUNCTIONS or _SYMBOL.fullmatch(name) is not None
        case ast.Constant(value=str() as text):
            return _ATOM.fullmatch(text) is not None
        case ast.Constant(value=value):
            return isinstance(value, (int, float))
    return isinstance(node, _ARITHMETIC_NODES)


def _plain_spec(text: str) -> bool:
    """Whether the layout of inputs or outputs is of plain containers; some others are imported."""

    def plain(part: Any) -> bool:
        if isinstance(part, dict):
            return all(plain(key) and plain(inner) for key, inner in part.items())
        if isinstance(part, list):
            return all(map(plain, part))
        if not isinstance(part, str):
            return True
        if _NAME.fullmatch(part):
            return part not in ("__enum__", "collections.defaultdict")
        try:
            return plain(json.loads(part))
        except (ValueError, RecursionError):
            return False

    return plain(text)
