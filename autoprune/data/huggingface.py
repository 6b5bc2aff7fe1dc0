"""Image data through the `datasets` library: a name on the hub, a folder, or a file.

Axis legend: N samples, C channels, S image side.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoprune.data.splits import Splits, TensorSplit, hold_out
from autoprune.domain.errors import AutopruneError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
LABEL_NAMES = ("label", "labels", "target", "class")
MODES = {1: "L", 3: "RGB"}
FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}


def huggingface(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    side: int = 32,
    channels: int = 3,
    held_out: float = 0.1,
    seed: int = 0,
) -> Splits:
    """Labelled images as uint8[N, C, S, S], resized bilinearly, with labels int64[N].

    `path` is a data set's name on the hub (``cifar10``, or ``name:configuration``), a folder of
    images in one folder a class, a folder of parquet files, or one such file. `columns` names
    the ``image`` and the ``label`` column where they are not plain to see. Labels that are no
    class numbers already are numbered in sorted order. A split that the data lacks, val or test,
    is held out from train: `held_out` of it, stratified by `seed`. All samples are held in
    memory.

    Raises AutopruneError where the extra ``hf`` is not installed, for data that cannot be
    loaded or decoded, a missing or ambiguous column, a missing train split, and sizes that
    cannot be had.
    """
    if not isinstance(side, int) or side < 1:
        raise AutopruneError(f"data 'huggingface': side is {side!r}; choose an integer above 0")
    if channels not in MODES:
        raise AutopruneError(
            f"data 'huggingface': channels is {channels!r}; choose 1 (grey) or 3 (colour)"
        )
    tables = _splits_of(path, _load(path))
    image, label = _columns(path, tables["train"], columns or {})
    numbering = _numbering(tables["train"], label)
    found = {
        name: TensorSplit(
            _pixels(table, image, side=side, channels=channels),
            _labels(table, label, numbering=numbering, split=name),
        )
        for name, table in tables.items()
    }
    for name in ("test", "val"):
        if name not in found:
            found["train"], found[name] = _carve(found["train"], held_out, seed=seed)
    return Splits(found["train"], found["val"], found["test"])


def _load(path: str) -> Any:
    """The `datasets.DatasetDict` behind `path`."""
    try:
        import datasets
    except ImportError as error:
        raise AutopruneError(
            f"data {path!r} needs the `datasets` library; pip install 'autoprune[hf]'"
        ) from error
    source, arguments = _source(path)
    try:
        return datasets.load_dataset(source, **arguments)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise AutopruneError(
            f"data {path!r} cannot be loaded ({type(error).__name__}: {error}); give a data set's "
            "name on the hub, a folder with one folder of images a class, or parquet files"
        ) from error


def _source(path: str) -> tuple[str, dict[str, Any]]:
    """What `datasets.load_dataset` is to be called with."""
    local = Path(path).expanduser()
    if local.is_dir():
        return str(local.resolve()), {}
    if local.is_file():
        if local.suffix not in FILE_BUILDERS:
            raise AutopruneError(
                f"data file {path!r} ends in {local.suffix!r}; choose one of {[*FILE_BUILDERS]} "
                "or give a folder"
            )
        return FILE_BUILDERS[local.suffix], {"data_files": str(local.resolve())}
    if path.startswith((".", "/", "~")) or local.suffix in FILE_BUILDERS:
        raise AutopruneError(f"data path {path!r} does not exist; give a folder or a file")
    name, _, configuration = path.partition(":")
    return name, {"name": configuration or None}


def _splits_of(path: str, loaded: Any) -> dict[str, Any]:
    tables = {
        split: loaded[name]
        for split, names in SPLIT_NAMES.items()
        for name in names
        if name in loaded
    }
    if "train" not in tables:
        raise AutopruneError(
            f"data {path!r} has no split 'train', only {sorted(loaded)}; name one of them 'train'"
        )
    return tables


def _columns(path: str, table: Any, named: Mapping[str, str]) -> tuple[str, str]:
    """The image and the label column, as named or as their types tell."""
    import datasets

    features = table.features
    wrong = {k: v for k, v in named.items() if k not in ("image", "label") or v not in features}
    if wrong:
        raise AutopruneError(
            f"data {path!r}: columns {wrong} do not exist; name image and label out of "
            f"{[*features]}"
        )
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in features if name.lower() in LABEL_NAMES]
    chosen = []
    for role, candidates in (("image", images), ("label", labels)):
        if role not in named and len(candidates) != 1:
            raise AutopruneError(
                f"data {path!r}: the {role} column could be any of {candidates or [*features]}; "
                f"name it with columns.{role}"
            )
        chosen.append(named[role] if role in named else candidates[0])
    return chosen[0], chosen[1]


def _numbering(table: Any, label: str) -> dict[Any, int] | None:
    """Class numbers by value; None where the data numbers its classes itself."""
    import datasets

    if isinstance(table.features[label], datasets.ClassLabel):
        return None
    values = table.unique(label)
    if not all(isinstance(value, (str, int)) for value in values):
        raise AutopruneError(
            f"column {label!r} holds {type(values[0]).__name__} values; "
            "labels are strings or integers"
        )
    return {value: number for number, value in enumerate(sorted(values))}


def _labels(
    table: Any, label: str, *, numbering: dict[Any, int] | None, split: str
) -> torch.Tensor:
    values = table[label][:]
    if numbering is not None:
        unknown = sorted(set(values) - set(numbering), key=str)
        if unknown:
            raise AutopruneError(
                f"split {split!r} has the labels {unknown[:5]}, which train has not; "
                "give train a sample of every class"
            )
        values = [numbering[value] for value in values]
    return torch.tensor(values, dtype=torch.int64)


def _pixels(table: Any, image: str, *, side: int, channels: int) -> torch.Tensor:
    """The images of a table as uint8[N, C, S, S]."""
    import datasets
    from PIL import Image, UnidentifiedImageError

    pixels = np.empty((len(table), side, side, channels), dtype=np.uint8)
    try:
        pictures = table.select_columns([image]).cast_column(image, datasets.Image())
        for index, row in enumerate(pictures):
            picture = row[image].convert(MODES[channels])
            resized = picture.resize((side, side), Image.Resampling.BILINEAR)
            pixels[index] = np.asarray(resized).reshape(side, side, channels)
    except (UnidentifiedImageError, OSError, TypeError, ValueError, AttributeError) as error:
        raise AutopruneError(
            f"column {image!r} does not hold images that can be decoded "
            f"({type(error).__name__}: {error}); name another with columns.image"
        ) from error
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def _carve(split: TensorSplit, share: float, *, seed: int) -> tuple[TensorSplit, TensorSplit]:
    parts = map(torch.from_numpy, hold_out(split.targets.numpy(), share, seed=seed))
    stay, held = (TensorSplit(split.inputs[i], split.targets[i]) for i in parts)
    return stay, held
