"""What the shape of images decides about a run, and what it rules out."""

import pytest
import yaml

from sparse_tx.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    pattern_for_images,
    preset_text,
    settings_for_images,
)
from sparse_tx.errors import UserError


def test_a_sequence_is_an_image():
    assert settings_for_images((5, 7, 3)) == {
        "seq_len": 105,
        "position_shape": [5, 7, 3],
        "sample_length": 0,
    }
    assert settings_for_images((5, 7, 1))["position_shape"] == [5, 7]


def test_the_pattern_is_as_wide_as_a_row():
    assert pattern_for_images((5, 7, 3)) == "local:42,strided:21"
    head = ModelConfig(seq_len=105, pattern=pattern_for_images((5, 7, 3))).stack.at(
        layer=1, head=0, n_head=4
    )
    # Above a byte stands the same channel of the same column.
    assert set(head.read_set(3 * 21 + 5)) == {5, 21 + 5, 42 + 5, 63 + 5}


def test_the_preset_of_digits_is_what_their_shape_decides():
    preset = yaml.safe_load(preset_text("mnist"))
    decided = settings_for_images((28, 28, 1)) | {"pattern": pattern_for_images((28, 28, 1))}
    assert {name: preset[name] for name in decided} == decided


@pytest.mark.parametrize("name", ["cifar10-paper", "imagenet64-paper"])
def test_the_paper_s_models_of_images_take_theirs(name):
    preset = yaml.safe_load(preset_text(name))
    shape = preset["position_shape"]
    decided = settings_for_images(tuple(shape))
    assert (preset["seq_len"], shape) == (decided["seq_len"], decided["position_shape"])
    RunConfig.from_flat(preset | {"image_shape": shape})


def run(seq_len=105, image_shape=(5, 7, 3), **training):
    return RunConfig(
        model=ModelConfig(seq_len=seq_len),
        data=DataConfig(image_shape=image_shape),
        training=TrainingConfig(max_steps=1, **training),
    )


def test_a_run_keeps_the_shape():
    config = run()
    flat = yaml.safe_load(yaml.safe_dump(config.to_flat()))
    assert flat["image_shape"] == [5, 7, 3]
    assert RunConfig.from_flat(flat) == config
    del flat["image_shape"]  # as before there were images
    assert RunConfig.from_flat(flat).data.image_shape == ()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(seq_len=104), "seq_len is 104, and an image of 5x7x3 is one sequence of 105 bytes"),
        (dict(length_warmup="35:0.5"), "length_warmup is '35:0.5', and an image of 5x7x3 is one"),
        (dict(image_shape=(5, 7)), "image_shape is 5x7; give rows, columns and channels"),
        (dict(image_shape=(5, 7, 2)), "image_shape is 5x7x2; give rows"),
        (dict(image_shape=(0, 7, 3)), "image_shape is 0x7x3; give rows"),
    ],
)
def test_mistakes(settings, sentence):
    with pytest.raises(UserError) as caught:
        run(**settings)
    assert sentence in str(caught.value)


def test_a_sequence_longer_than_the_grid_is_said_to_be_no_image():
    flat = run().to_flat() | {"seq_len": 106, "position_shape": [5, 7, 3]}
    with pytest.raises(UserError, match="seq_len is 106, and an image of 5x7x3"):
        RunConfig.from_flat(flat)


def test_images_in_other_tokens_than_bytes():
    with pytest.raises(UserError, match="tokenizer is bpe, and the data is images of 5x7x3"):
        DataConfig(image_shape=(5, 7, 3), tokenizer="bpe")
