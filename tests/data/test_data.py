"""Data arguments: what is read, what is refused, and that content decides."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeopt.artifacts.interface import Preprocessing
from edgeopt.data import Samples, as_samples, load_data, overlap
from edgeopt.data.pixels import to_input
from edgeopt.errors import ConfigError, DataError
from edgeopt.ir.calls import Batch

VECTORS = Batch((torch.zeros(2, 3),))
PICTURES = Batch((torch.zeros(2, 3, 8, 8),))


def vectors(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 5, count)


def picture(seed: int, size: tuple[int, int] = (8, 8), form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def picture_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 2) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(each):
            (root / name / f"{index}.png").write_bytes(picture(10 * number + index))
    return root


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def labels_of(samples: Samples) -> list[int]:
    return [int(v) for batch in samples.batches(3) for v in batch.labels]


def labelled(samples: Samples) -> bool:
    return next(samples.batches(1)).labels is not None


# Samples


def test_batches_start_again_and_the_last_is_smaller() -> None:
    x, y = vectors(10)
    samples = as_samples((x, y), example=VECTORS)
    for _ in range(2):
        batches = list(samples.batches(4))
        assert [b.size for b in batches] == [4, 4, 2]
        torch.testing.assert_close(torch.cat([b.args[0] for b in batches]), torch.from_numpy(x))
    start = samples.as_batches(4)
    assert [len(b.args[0]) for b in start()] == [len(b.args[0]) for b in start()] == [4, 4, 2]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 40), part=st.data(), seed=st.integers(0, 99))
def test_a_split_is_a_seeded_sorted_partition(count: int, part: st.DataObject, seed: int) -> None:
    n = part.draw(st.integers(1, count - 1))
    samples = as_samples(vectors(count), example=VECTORS)
    first, rest = samples.split(n, seed)
    assert first.count == n
    assert sorted([*first.indices, *rest.indices]) == list(range(count))
    assert list(first.indices) == sorted(first.indices)
    assert first.indices == samples.take(n, seed).indices
    assert overlap(first, rest) == 0
    assert samples.without(first).indices == rest.indices


def test_take_gives_all_where_there_are_fewer() -> None:
    samples = as_samples(vectors(5), example=VECTORS)
    assert samples.take(9, 0) is samples
    with pytest.raises(ConfigError, match="at least 1"):
        samples.take(0, 0)
    with pytest.raises(DataError, match="cannot split 5"):
        samples.split(5, 0)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 6))
def test_overlap_is_found_by_content_not_by_position(order: list[int], shared: int) -> None:
    x, y = vectors(6)
    other, _ = vectors(6, seed=1)
    other[:shared] = x[order[:shared]]
    a = as_samples((x, y), example=VECTORS)
    b = as_samples(other.astype(np.float64), example=VECTORS)  # no labels, another width
    assert overlap(a, b) == overlap(b, a) == shared


def test_the_digest_holds_inputs_labels_and_order() -> None:
    x, y = vectors(70)
    digest = as_samples((x, y), example=VECTORS).digest()
    assert as_samples((x.copy(), torch.from_numpy(y)), example=VECTORS).digest() == digest
    changed = x.copy()
    changed[69, 2] += 1e-6
    for inputs, labels in ((changed, y), (x, y + 1), (x[::-1].copy(), y[::-1].copy()), (x, None)):
        value = (inputs, labels) if labels is not None else inputs
        assert as_samples(value, example=VECTORS).digest() != digest
    # A subset that was hashed first changes nothing.
    samples = as_samples((x, y), example=VECTORS)
    samples.take(7, 3).fingerprints()
    assert samples.digest() == digest


# Python values


class MapStyle:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3,), float(index)), index


def test_python_values_give_the_same_samples() -> None:
    x = torch.arange(5.0)[:, None].expand(5, 3).contiguous()
    y = torch.arange(5)
    pairs = torch.utils.data.TensorDataset(x, y)
    values = {
        "tuple": (x, y),
        "names": {"x": x, "labels": y},
        "map": MapStyle(),
        "loader": torch.utils.data.DataLoader(pairs, batch_size=2),
        "batches": [(x[:2], y[:2]), (x[2:], y[2:])],
        "samples": [(x[i], y[i]) for i in range(5)],
        "generator": ({"images": x[i : i + 1], "y": y[i : i + 1]} for i in range(5)),
    }
    digests = {k: as_samples(v, example=VECTORS).digest() for k, v in values.items()}
    assert len(set(digests.values())) == 1, digests


def test_arrays_in_any_memory_layout_are_taken() -> None:
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    locked = x.copy()
    locked.flags.writeable = False
    layouts = [x.astype(">f4"), np.asfortranarray(x), x[::-1].copy()[::-1], locked]
    assert len({as_samples(v, example=VECTORS).digest() for v in [x, *layouts]}) == 1


def test_several_inputs_come_by_position_or_name() -> None:
    example = Batch((torch.zeros(2, 4, dtype=torch.int64),), {"mask": torch.zeros(2, 4)})
    ids, mask, y = torch.arange(12).reshape(3, 4), torch.ones(3, 4), torch.tensor([0, 1, 2])
    named = {"ids": ids.int(), "mask": mask, "y": y}
    for value in ((ids, mask, y), ((ids, mask), y), named):
        samples = as_samples(value, example=example, input_names=("ids", "mask"))
        batch = next(samples.batches(3))
        assert torch.equal(batch.args[0], ids)
        assert batch.args[0].dtype == torch.int64
        assert torch.equal(batch.kwargs["mask"], mask)
        assert torch.equal(batch.labels, y)


def test_a_dynamic_dimension_is_free() -> None:
    shapes = {"x": {0: torch.export.Dim("n"), 1: torch.export.Dim("t")}}
    long = torch.zeros(4, 9)
    with pytest.raises(DataError, match=r"float32 \[4, 9\], the model takes float32 \[N, 3\]"):
        as_samples(long, example=VECTORS)
    assert as_samples(long, example=VECTORS, dynamic_shapes=shapes).count == 4


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(0, 3), "no samples"),
        ([], "no samples"),
        (torch.zeros(4, 2), r"the model takes float32 \[N, 3\]"),
        (torch.zeros(4, 3, dtype=torch.int64), r"is int64 \[4, 3\]"),
        (torch.full((4, 3), torch.nan), "NaN or Inf"),
        ((torch.zeros(4, 3), torch.zeros(3)), r"4 samples and labels \[3\]"),
        ((torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4)), "3 inputs, the model takes 1"),
        ({"x": torch.zeros(4, 3), "meta": torch.zeros(4)}, "'meta' is neither"),
        ({"inptu0": torch.zeros(4, 3)}, "no array 'input0' .*did you mean 'inptu0'"),
        (np.array([["a", "b", "c"]]), "no numbers"),
        (np.array([[None]]), "no numbers"),
        (7, "int is no data"),
        ([(torch.zeros(1, 3), 0), torch.zeros(1, 3)], "some batches have labels"),
    ],
)
def test_python_values_that_do_not_fit_are_named(value: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        as_samples(value, example=VECTORS, name="mine")
    assert "\n" not in str(caught.value)


def test_nan_in_a_streamed_sample_is_found_when_it_is_read() -> None:
    class Broken(MapStyle):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.full((3,), torch.nan if index == 3 else 0.0), index

    samples = as_samples(Broken(), example=VECTORS)
    with pytest.raises(DataError, match="sample 3 holds NaN"):
        list(samples.batches(2))


# .npz


def test_npz_by_usual_and_by_chosen_names(tmp_path: Path) -> None:
    x, y = vectors(6)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez_compressed(tmp_path / "b.npz", x_test=x.astype(np.float64), y_test=y, other=y)
    a = load_data(str(tmp_path / "a.npz"), example=VECTORS)
    b = load_data(f"{tmp_path / 'b.npz'}?x=x_test&y=y_test", example=VECTORS)
    assert a.digest() == b.digest()
    assert a.name == "a.npz"
    with pytest.raises(DataError, match="no array"):
        load_data(str(tmp_path / "b.npz"), example=VECTORS)


def test_npz_pictures_equal_the_same_pictures_in_files(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "set")
    files = sorted(folder.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array([0, 0, 1, 1], dtype=np.uint8))
    np.savez(tmp_path / "b.npz", images=pixels.transpose(0, 3, 1, 2))
    query = "?mean=0.5,0.4,0.3&std=0.2"
    want = load_data(f"{folder}{query}", example=PICTURES)
    got = load_data(f"{tmp_path / 'a.npz'}{query}", example=PICTURES)
    channels_first = load_data(f"{tmp_path / 'b.npz'}{query}", example=PICTURES)
    assert got.digest() == want.digest()
    assert overlap(channels_first, want) == 4
    with pytest.raises(DataError, match=r"say how they become inputs"):
        load_data(str(tmp_path / "a.npz"), example=PICTURES)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def test_npz_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    array = np.empty(1, dtype=object)
    array[0] = Bomb()
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        load_data(str(zipped(tmp_path / "x.npz", {"x.npy": buffer.getvalue()})), example=VECTORS)
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"cannot be read as .npz"):
        load_data(str(tmp_path / "p.npz"), example=VECTORS)


def test_npz_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)}
    np.lib.format.write_array_header_1_0(buffer, header)
    path = zipped(tmp_path / "x.npz", {"x.npy": buffer.getvalue()})
    with pytest.raises(DataError, match="shorter than its header"):
        load_data(str(path), example=VECTORS)
    np.savez(tmp_path / "y.npz", x=vectors(50)[0])
    content = (tmp_path / "y.npz").read_bytes()
    (tmp_path / "y.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_data(str(tmp_path / "y.npz"), example=VECTORS)


# Pictures


def test_a_picture_becomes_the_documented_numbers() -> None:
    pixels = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    p = Preprocessing(crop=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    centre = pixels[1:9, 2:10].astype(np.float64) / 255
    want = ((centre - p.mean) / p.std).transpose(2, 0, 1)
    # Three float32 operations on numbers under 5: a few units of 2^-22.
    np.testing.assert_allclose(to_input(pixels, p, "x"), want, atol=1e-6)
    bgr = to_input(pixels, Preprocessing(crop=8, channels="BGR", layout="NHWC"), "x")
    np.testing.assert_allclose(bgr, centre[..., ::-1], atol=1e-6)
    grey = to_input(pixels, Preprocessing(resize=5, crop=5, channels="L"), "x")
    assert grey.shape == (1, 5, 5)
    assert grey.dtype == np.float32
    with pytest.raises(DataError, match="12 x 10 pixels, smaller than the crop of 16"):
        to_input(pixels, Preprocessing(crop=16), "x")
    with pytest.raises(DataError, match="more than 8 bits"):
        to_input(Image.fromarray(pixels[..., 0].astype(np.uint16)), Preprocessing(), "x")


def test_a_folder_of_class_folders_is_labelled_in_sorted_order(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "set", ("dog", "cat", "ant"))
    (folder / "README.txt").write_text("no picture")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.png").write_bytes(b"hidden")
    samples = load_data(f"{folder}?mean=0", example=PICTURES)
    assert (samples.count, samples.class_names) == (6, ("ant", "cat", "dog"))
    assert labels_of(samples) == [0, 0, 1, 1, 2, 2]
    own = load_data(f"{folder}?mean=0", example=PICTURES, labels=("dog", "eel", "cat", "ant"))
    assert labels_of(own) == [3, 3, 2, 2, 0, 0]
    with pytest.raises(DataError, match="3 class folders, but the model has 4 classes"):
        load_data(f"{folder}?mean=0", example=PICTURES, labels=("a", "b", "c", "d"))
    assert not labelled(load_data(f"{folder}?mean=0&labels=none", example=PICTURES))


def test_labels_come_from_a_list_a_table_or_an_object(tmp_path: Path) -> None:
    members = {f"images/n{i}.png": picture(i) for i in range(3)}
    (tmp_path / "wnids.json").write_text(json.dumps(["n9", "n2", "n1", "n0"]))
    path = zipped(tmp_path / "a.zip", members)
    spec = f"{path}?mean=0.5&std=0.5"
    assert not labelled(load_data(spec, example=PICTURES))
    assert labels_of(load_data(f"{spec}&labels=wnids.json", example=PICTURES)) == [3, 2, 1]
    inside = {**members, "labels.csv": b"n0.png,1\nn1.png,dog\nimages/n2.png,0\n"}
    zipped(path, inside)
    named = load_data(spec, example=PICTURES, labels=("cat", "dog"))
    assert labels_of(named) == [1, 1, 0]
    with pytest.raises(DataError, match="'dog' is no class"):
        load_data(spec, example=PICTURES)
    zipped(path, {**members, "labels.json": b'{"n0": 4, "n1": 2}'})
    with pytest.raises(DataError, match=r"no class for images/n2.png"):
        load_data(spec, example=PICTURES)
    with pytest.raises(DataError, match=r"no wnid.json"):
        load_data(f"{spec}&labels=wnid.json", example=PICTURES)


def test_options_override_the_file_which_overrides_the_model(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "set")
    (folder / "preprocessing.toml").write_text('mean = [0.1]\nchannels = "BGR"\nlabels = "none"\n')
    own = Preprocessing(mean=(0.3,), std=(0.3,), channels="L")
    samples = load_data(f"{folder}?mean=0.2", example=PICTURES, preprocessing=own)
    assert samples.preprocessing == Preprocessing(mean=(0.2,), std=(0.3,), channels="BGR")
    assert not labelled(samples)
    (folder / "preprocessing.toml").write_text("maen = [0.1]\n")
    with pytest.raises(DataError, match=r"unknown key 'maen' .*'mean'"):
        load_data(str(folder), example=PICTURES)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "say how a picture becomes an input"),
        ("?maen=0", "unknown option 'maen' .*'mean'"),
        ("?mean=a", "mean='a' is no number"),
        ("?mean=0,0", "mean takes 1 or 3 numbers"),
        ("?std=0", "std must be over 0"),
        ("?channels=CMYK", "RGB, BGR or L"),
        ("?crop=16", "smaller than the crop"),
        ("?channels=L", r"float32 \[1, 1, 8, 8\], the model takes float32 \[N, 3, 8, 8\]; see"),
        ("?size=4", r"float32 \[1, 3, 4, 4\]"),
        ("?x=a&mean=0", "is for .npz"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path: Path, query: str, words: str) -> None:
    folder = picture_folder(tmp_path / "set")
    with pytest.raises(DataError, match=words):
        load_data(f"{folder}{query}", example=PICTURES)


def test_pictures_are_decoded_when_they_are_read(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "a.zip",
        {"0.png": picture(0), "1.png": b"no picture", "2.png": picture(2)[:90]},
    )
    samples = load_data(f"{path}?mean=0", example=PICTURES)
    batches = samples.batches(1)
    assert next(batches).size == 1
    with pytest.raises(DataError, match=r"1.png: not a picture, or damaged"):
        next(batches)
    with pytest.raises(DataError, match=r"2.png: cannot be decoded"):
        samples.source.read([2])


@pytest.mark.parametrize("side", [9000, 11000, 20000])
def test_a_picture_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    path = zipped(tmp_path / "a.zip", {"0.png": bomb})
    with pytest.raises(DataError, match=f"{side} x {side} pixels; refused|exceeds limit"):
        load_data(f"{path}?mean=0", example=PICTURES)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png", "C:\\a.png"])
def test_a_zip_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "a.zip", {name: picture(0)})
    with pytest.raises(DataError, match="leaves the archive's folder"):
        load_data(f"{path}?mean=0", example=PICTURES)


def test_a_zip_link_and_a_damaged_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/hostname")
    with pytest.raises(DataError, match="is a link"):
        load_data(f"{tmp_path / 'link.zip'}?mean=0", example=PICTURES)
    content = zipped(tmp_path / "a.zip", {"0.png": picture(0)}).read_bytes()
    (tmp_path / "short.zip").write_bytes(content[:-30])
    with pytest.raises(DataError, match=r"cannot be read as .zip"):
        load_data(f"{tmp_path / 'short.zip'}?mean=0", example=PICTURES)
    flipped = bytearray(content)
    flipped[80] ^= 255
    (tmp_path / "flipped.zip").write_bytes(flipped)
    with pytest.raises(DataError, match=r"0.png' is damaged"):
        load_data(f"{tmp_path / 'flipped.zip'}?mean=0", example=PICTURES)


def test_missing_and_unknown_data_say_what_exists(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for spec, words in (
        (tmp_path / "none.npz", "no such file or folder"),
        (tmp_path / "a.txt", "not one of FILE.npz"),
        (tmp_path / "empty", "no pictures in it"),
        (f"{tmp_path}/none.py:f", "no such file"),
    ):
        with pytest.raises(DataError, match=words):
            load_data(str(spec), example=PICTURES)


def test_a_function_of_the_users_own_gives_data(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("COUNT = 4\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nfrom neighbour import COUNT\n"
        "def good():\n    return np.zeros((COUNT, 3), np.float32), np.arange(COUNT)\n"
        "def bad():\n    raise OSError('no\\ndisk')\n"
    )
    assert labels_of(load_data(f"{file}:good", example=VECTORS)) == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"mine.py:bad raised OSError: no disk$"):
        load_data(f"{file}:bad", example=VECTORS)
    with pytest.raises(DataError, match=r"no function 'goood' \(did you mean 'good'"):
        load_data(f"{file}:goood", example=VECTORS)


# Real pictures


def test_real_pictures_are_cropped_and_labelled_as_their_source_says(assets: Path) -> None:
    folder = assets / "imagenet-sample"
    samples = load_data(
        f"{folder / 'images256_q90.zip'}?crop=224&mean=0.5&std=0.5&labels=wnids.json",
        example=Batch((torch.zeros(2, 3, 224, 224),)),
    )
    assert samples.count == 500
    assert labels_of(samples.subset(range(6))) == [0, 2, 4, 6, 8, 10]  # the even classes
    with zipfile.ZipFile(folder / "images256_q90.zip") as archive:
        name = sorted(archive.namelist())[7]
        raw = Image.open(archive.open(name)).convert("RGB").crop((16, 16, 240, 240))
    want = np.asarray(raw, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(samples.source.read([7]).args[0][0], want, atol=1e-6)


def test_a_zip_of_class_folders_has_the_usual_cifar_order(assets: Path) -> None:
    samples = load_data(
        f"{assets / 'cifar10' / 'cifar10_test5k_jpeg.zip'}?mean=0.5",
        example=Batch((torch.zeros(2, 3, 32, 32),)),
    )
    assert samples.class_names[::3] == ("airplane", "cat", "frog", "truck")
    assert (
        np.bincount([int(samples.source.read([i]).labels[0]) for i in range(0, 5000, 250)])[9] == 2
    )
    part = samples.take(40, seed=1)
    assert overlap(part, samples.take(40, seed=1)) == part.count


# Nested inputs


class Nested:
    """`forward(batch, extra=None, *, ids)`: the example of a model whose inputs nest."""

    args = ({"x": torch.zeros(2, 3), "pair": (torch.zeros(2, 4), torch.zeros(2, 5))}, None, 7)
    kwargs: ClassVar = {"ids": torch.zeros(2, 6, dtype=torch.int64)}


NESTED = ("batch_x", "batch_pair_0", "batch_pair_1", "ids")


def nested_arrays(count: int = 4) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {
        "batch_x": random.standard_normal((count, 3)).astype(np.float32),
        "batch_pair_0": random.standard_normal((count, 4)).astype(np.float32),
        "batch_pair_1": random.standard_normal((count, 5)).astype(np.float32),
        "ids": random.integers(0, 9, (count, 6)).astype(np.int32),
    }


def test_nested_inputs_are_read_by_name_and_given_as_the_model_takes_them(tmp_path: Path) -> None:
    arrays = nested_arrays()
    np.savez(tmp_path / "data.npz", **arrays, labels=np.arange(4))
    samples = load_data(str(tmp_path / "data.npz"), example=Nested(), input_names=NESTED)
    batch = next(samples.batches(3))
    mapping, extra, number = batch.args
    assert (extra, number) == (None, 7)
    assert isinstance(mapping["pair"], tuple)
    np.testing.assert_array_equal(mapping["pair"][1].numpy(), arrays["batch_pair_1"][:3])
    np.testing.assert_array_equal(batch.kwargs["ids"].numpy(), arrays["ids"][:3])
    assert batch.kwargs["ids"].dtype == torch.int64
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.size == 3
    assert [tuple(v.shape) for v in batch.inputs] == [(3, 3), (3, 4), (3, 5), (3, 6)]


def test_nested_samples_may_nest_as_the_model_takes_them() -> None:
    a = nested_arrays()

    class Data:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> Any:
            pair = (a["batch_pair_0"][i], a["batch_pair_1"][i])
            return {"batch": {"x": a["batch_x"][i], "pair": pair}, "ids": a["ids"][i]}

    by_name = as_samples(a, example=Nested(), input_names=NESTED)
    nested = as_samples(Data(), example=Nested(), input_names=NESTED)
    items = [
        ({"x": a["batch_x"][i], "pair": Data()[i]["batch"]["pair"]}, a["ids"][i]) for i in (0, 1)
    ]
    positional = as_samples([(*item, 0) for item in items], example=Nested(), input_names=NESTED)
    assert nested.digest() == by_name.digest()
    assert positional.fingerprints() == by_name.subset([0, 1]).fingerprints()


def test_nested_inputs_that_do_not_fit_are_named() -> None:
    arrays = nested_arrays()
    for spoilt, reason in (
        ({**arrays, "batch_pair_1": arrays["batch_x"]}, r"batch_pair_1 is float32 \[4, 3\]"),
        ({k: v for k, v in arrays.items() if k != "ids"}, "no array 'ids'"),
    ):
        with pytest.raises(DataError, match=reason):
            as_samples(spoilt, example=Nested(), input_names=NESTED)


def test_a_single_number_as_input_has_no_samples() -> None:
    class Scalar:
        args = (torch.zeros(2, 3), torch.tensor(0.5))
        kwargs: ClassVar[dict[str, Any]] = {}

    with pytest.raises(DataError, match=r"input scale: .* this one is a single number"):
        as_samples(torch.zeros(4, 3), example=Scalar(), input_names=("x", "scale"))
