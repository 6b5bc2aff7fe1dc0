"""The built-in data sources: what they return, and what they refuse."""

import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autoprune.data import Splits, TensorSplit, digits, huggingface, stratified
from autoprune.data.splits import hold_out
from autoprune.domain.errors import AutopruneError


def split(samples: int = 4, *, label: int = 1, side: int = 3) -> TensorSplit:
    return TensorSplit(torch.zeros(samples, 1, side, side), torch.full((samples,), label))


def shares(targets: torch.Tensor) -> torch.Tensor:
    return targets.bincount().float() / len(targets)


# Splits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (split(0), "split 'val' has no sample; give it at least one"),
        (split(label=-1), "split 'val' has the label -1; number the classes from 0"),
        (split(side=4), "split 'val': inputs are torch.float32[1, 4, 4] and those of 'train'"),
        (
            TensorSplit(torch.zeros(4, 1, 3, 3), torch.ones(3, dtype=torch.int64)),
            "split 'val' has 4 inputs and 3 targets; give one target for every input",
        ),
        (
            TensorSplit(torch.zeros(4, 1, 3, 3), torch.ones(4)),
            "split 'val': targets are torch.float32[] and those of 'train' torch.int64[]",
        ),
        (
            TensorSplit(torch.zeros(4, 1, 3, 3).double(), torch.ones(4)),
            "split 'val': inputs are torch.float64; give tensors of torch.float32 or torch.int64",
        ),
        (
            TensorSplit(np.zeros((4, 1)), torch.ones(4)),  # type: ignore[arg-type]
            "split 'val': inputs are ndarray; give tensors",
        ),
        (
            TensorSplit(torch.full((4, 1, 3, 3), torch.nan), torch.ones(4, dtype=torch.int64)),
            "split 'val': inputs hold NaN or infinity; clean the data first",
        ),
        (
            TensorSplit(torch.zeros(4), torch.ones(4)),
            "split 'val': inputs have shape [4] and targets [4]; give inputs [N, ...]",
        ),
    ],
)
def test_wrong_splits_are_refused(wrong: TensorSplit, message: str) -> None:
    with pytest.raises(AutopruneError, match=re.escape(message)):
        Splits(split(), wrong, split())


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(20, 60), min_size=2, max_size=5),
    val=st.floats(0.15, 0.4),
    test=st.floats(0.15, 0.4),
    seed=st.integers(0, 2**31),
)
def test_every_sample_lands_in_one_split_and_classes_keep_their_shares(
    counts: list[int], val: float, test: float, seed: int
) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    inputs = torch.arange(len(targets)).float()[:, None]
    cut = stratified(inputs, targets, val=val, test=test, seed=seed)
    everything = torch.cat([part.inputs for _, part in cut])
    assert everything.flatten().sort().values.tolist() == inputs.flatten().tolist()
    assert abs(len(cut.val) - val * len(targets)) <= 1.5
    assert abs(len(cut.test) - test * len(targets)) <= 1.5
    for _, part in cut:
        torch.testing.assert_close(part.targets, targets[part.inputs.flatten().long()])
        assert (shares(part.targets) - shares(targets)).abs().max() <= 2.0 / len(part)


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.2), (0.2, 1.0), (0.5, 0.5), (-0.1, 0.2)])
def test_shares_out_of_range_are_refused(val: float, test: float) -> None:
    with pytest.raises(AutopruneError, match="choose both above 0 and together below 1"):
        stratified(torch.zeros(40, 1), torch.arange(40) % 2, val=val, test=test)


def test_a_class_too_small_to_split_is_refused() -> None:
    with pytest.raises(AutopruneError, match=r"cannot be split .* give more samples of every"):
        stratified(torch.zeros(20, 1), torch.tensor([1] + 19 * [0]))


def test_a_share_outside_the_unit_interval_cannot_be_held_out() -> None:
    with pytest.raises(AutopruneError, match=r"share of 1.0 .* choose one between 0 and 1"):
        hold_out(np.zeros(4, dtype=np.int64), 1.0, seed=0)


# Digits


def test_digits_have_the_asked_shape_and_range() -> None:
    data = digits(side=12, channels=3, val=0.1, test=0.3)
    assert [len(part) for _, part in data] == [1077, 180, 540]
    for _, part in data:
        assert part.inputs.shape[1:] == (3, 12, 12)
        assert part.inputs.min() >= -1.0
        assert part.inputs.max() <= 1.0
        torch.testing.assert_close(part.inputs[:, 0], part.inputs[:, 2])
        assert set(part.targets.tolist()) == set(range(10))


def test_digits_at_their_own_side_are_the_originals() -> None:
    data = digits(side=8)
    values = (data.train.inputs + 1.0) * 8.0
    torch.testing.assert_close(values, values.round())


def test_digits_follow_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = digits(seed=1), digits(seed=1), digits(seed=2)
    torch.testing.assert_close(one.val.inputs, same.val.inputs)
    assert not torch.equal(one.val.targets, other.val.targets)
    assert torch.equal(state, torch.get_rng_state())


def test_splits_pickle() -> None:
    data = digits(side=8)
    again = pickle.loads(pickle.dumps(data))
    torch.testing.assert_close(again.test.inputs, data.test.inputs)


@pytest.mark.parametrize("wrong", [{"side": 0}, {"channels": 1.5}])
def test_digits_refuse_wrong_sizes(wrong: dict[str, Any]) -> None:
    with pytest.raises(AutopruneError, match=r"data 'digits': .* choose an integer of 1 or more"):
        digits(**wrong)


# Whatever the `datasets` library loads

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def paint(folder: Path, count: int) -> None:
    for colour, pixel in COLOURS.items():
        (folder / colour).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (9, 6 + index), pixel).save(folder / colour / f"{index}.png")


def encoded(colour: str, folder: Path) -> bytes:
    file = folder / f"{colour}.png"
    Image.new("RGB", (5, 5), COLOURS[colour]).save(file)
    return file.read_bytes()


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., str]:
    """Writes a parquet file of images and labels; the columns' names and values are given."""

    def write(name: str = "table.parquet", **columns: Any) -> str:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns).to_parquet(file)
        return str(file)

    return write


def assert_colours(part: TensorSplit) -> None:
    for image, label in zip(part.inputs, part.targets, strict=True):
        pixel = COLOURS[["blue", "red"][int(label)]]
        expected = torch.tensor(pixel, dtype=torch.uint8)[:, None, None].expand_as(image)
        assert torch.equal(image, expected)


def test_an_image_folder_without_splits_is_cut_into_three(tmp_path: Path) -> None:
    paint(tmp_path / "images", 10)
    data = huggingface(str(tmp_path / "images"), side=4, held_out=0.2)
    assert [len(part) for _, part in data] == [12, 4, 4]
    for _, part in data:
        assert part.inputs.shape[1:] == (3, 4, 4)
        assert part.inputs.dtype is torch.uint8
        assert_colours(part)
        assert shares(part.targets).tolist() == [0.5, 0.5]


def test_an_image_folder_keeps_its_own_splits(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("validation", 2), ("test", 3)):
        paint(tmp_path / "images" / name, count)
    data = huggingface(str(tmp_path / "images"), side=4, channels=1)
    assert [len(part) for _, part in data] == [10, 4, 6]
    assert data.test.inputs.shape[1:] == (1, 4, 4)


def test_only_the_missing_split_is_held_out(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("test", 3)):
        paint(tmp_path / "images" / name, count)
    one, other = (huggingface(str(tmp_path / "images"), side=4, seed=seed) for seed in (0, 0))
    assert [len(part) for _, part in one] == [18, 2, 6]
    torch.testing.assert_close(one.val.inputs, other.val.inputs)


def test_parquet_with_encoded_images_and_named_labels(
    tmp_path: Path, parquet: Callable[..., str]
) -> None:
    colours = ["red", "blue"] * 10
    path = parquet(picture=[encoded(c, tmp_path) for c in colours], kind=colours, id=[*range(20)])
    data = huggingface(path, columns={"image": "picture", "label": "kind"}, side=4)
    assert [len(part) for _, part in data] == [16, 2, 2]
    for _, part in data:
        assert_colours(part)


def test_a_parquet_folder_with_splits(tmp_path: Path, parquet: Callable[..., str]) -> None:
    for name in ("train", "val", "test"):
        colours = ["red", "blue"] * 3
        images = [encoded(c, tmp_path) for c in colours]
        labels = [7 * (colour == "red") for colour in colours]
        path = parquet(f"tables/{name}.parquet", img=images, label=labels)
    data = huggingface(str(Path(path).parent), columns={"image": "img"}, side=4)
    assert [len(part) for _, part in data] == [6, 6, 6]
    for _, part in data:
        assert_colours(part)


def test_a_label_that_train_lacks_is_refused(tmp_path: Path, parquet: Callable[..., str]) -> None:
    for name, label in (("train", "cat"), ("test", "dog")):
        images = [encoded("red", tmp_path)]
        path = parquet(f"tables/{name}.parquet", image=images, label=[label])
    with pytest.raises(AutopruneError, match=r"split 'test' has the labels \['dog'\], which train"):
        huggingface(str(Path(path).parent), columns={"image": "image"})


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "images", 2)
    with pytest.raises(AutopruneError, match=r"columns \{'label': 'colour'\} do not exist; name"):
        huggingface(str(tmp_path / "images"), columns={"label": "colour"})


def test_columns_that_nothing_tells_apart_must_be_named(
    tmp_path: Path, parquet: Callable[..., str]
) -> None:
    path = parquet(a=[encoded("red", tmp_path)], b=["x"])
    with pytest.raises(AutopruneError, match=r"image column could be any of \['a', 'b'\]; name"):
        huggingface(path)
    with pytest.raises(AutopruneError, match=r"label column could be any of .* columns\.label"):
        huggingface(path, columns={"image": "a"})


def test_a_column_of_something_else_is_refused(parquet: Callable[..., str]) -> None:
    path = parquet(text=["x", "y"], label=[0, 1])
    with pytest.raises(AutopruneError, match=r"column 'text' does not hold images that can be"):
        huggingface(path, columns={"image": "text"})
    broken = parquet("broken.parquet", text=[b"x", b"y"], label=[0, 1])
    with pytest.raises(AutopruneError, match=r"column 'text' does not hold images that can be"):
        huggingface(broken, columns={"image": "text"})


def test_labels_that_are_numbers_with_a_point_are_refused(
    tmp_path: Path, parquet: Callable[..., str]
) -> None:
    path = parquet(image=[encoded("red", tmp_path)], label=[0.5])
    with pytest.raises(AutopruneError, match="'label' holds float values; labels are strings or"):
        huggingface(path, columns={"image": "image"})


def test_a_data_set_without_train_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "images" / "test", 2)
    with pytest.raises(AutopruneError, match=r"no split 'train', only \['test'\]; name one"):
        huggingface(str(tmp_path / "images"))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere.parquet"])
def test_a_path_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(AutopruneError, match="does not exist; give a folder or a file"):
        huggingface(path)


def test_what_the_library_cannot_load_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AutopruneError, match=r"cannot be loaded \(EmptyDatasetError.*give a data"):
        huggingface(str(tmp_path / "empty"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(AutopruneError, match=r"'no-such-data' cannot be loaded \("):
        huggingface("no-such-data")


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.xyz").touch()
    with pytest.raises(AutopruneError, match=r"ends in '.xyz'; choose one of \['.parquet'"):
        huggingface(str(tmp_path / "data.xyz"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"side": 0}, "side is 0; choose an integer above 0"),
        ({"channels": 2}, "channels is 2; choose 1 (grey) or 3 (colour)"),
    ],
)
def test_wrong_sizes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(AutopruneError, match=re.escape(message)):
        huggingface("cifar10", **wrong)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(AutopruneError, match=r"needs the `datasets` library; pip install 'auto"):
        huggingface("cifar10")
