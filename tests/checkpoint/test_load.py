import hashlib
import json
import shutil

import pytest
import torch
import yaml

from sparse_tx.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    read_checkpoint,
    weights_sha256,
)
from sparse_tx.data import CharTokenizer
from sparse_tx.errors import UserError
from sparse_tx.model import GPT

FILES = [
    "model.safetensors",
    "ema.safetensors",
    "config.yaml",
    "tokenizer.json",
    "training_state.pt",
]


def test_a_run_gives_its_latest_or_best_and_a_checkpoint_itself(run, save):
    for step, valid_bpb in ((9, 3.0), (10, 2.0), (100, 2.5)):
        save(step, valid_bpb=valid_bpb)
    assert find_checkpoint(run).name == "step-00000100"
    assert find_checkpoint(run, "best").name == "step-00000010"
    assert read_checkpoint(run).step == 100
    path = find_checkpoint(run, "best")
    assert find_checkpoint(path) == find_checkpoint(str(path), "best") == path
    copy = shutil.copytree(path, run.parent / "under another name")
    assert read_checkpoint(copy).step == 10


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(UserError, match="run' does not exist; give a run directory"):
        find_checkpoint(run)
    (run / "checkpoints" / ".tmp-step-00000001").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there is no checkpoint in '.*run' yet"):
        find_checkpoint(run)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        find_checkpoint(tmp_path / "file")


def test_the_model_comes_in_eval_mode_with_averaged_weights(save, run, config):
    save(3, ema=True)
    model, tokenizer, found = load_checkpoint(run)
    assert isinstance(model, GPT) and not model.training
    assert all((tensor == 3.5).all() for tensor in model.state_dict().values())
    assert (tokenizer.kind, found) == ("byte", config)
    save(4, ema=False)
    model, _, _ = load_checkpoint(run)
    assert all((tensor == 4).all() for tensor in model.state_dict().values())


def test_the_loaded_model_computes_what_the_saved_one_did(save, run, make_config):
    config = make_config(tie_embeddings=True)
    model = GPT(config.model).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save(1, config=config, model_state=model.state_dict())
    loaded, _, _ = load_checkpoint(run)
    tokens = torch.randint(256, (2, 13))
    assert torch.equal(loaded(tokens), model(tokens))
    assert len(list(loaded.parameters())) == len(list(model.parameters()))


def test_which_is_passed_on(save, run):
    save(1, valid_bpb=1.0)
    save(2, valid_bpb=2.0)
    model, _, _ = load_checkpoint(run, which="best")
    assert all((tensor == 1).all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", FILES)
def test_an_altered_byte_is_found(save, name):
    save(1)
    path = save(2, ema=True)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_checkpoint(path, with_training_state=True)
    assert f"{name} was altered after it was saved" in str(error.value)
    first = "remove the damaged folder '{}', and --resume goes on from step 1"
    assert first.format(path) in str(error.value)
    if name != "training_state.pt":
        with pytest.raises(UserError, match=r"use '.*step-00000001' of the same run"):
            read_checkpoint(path)


def test_the_way_out_names_no_other_damaged_checkpoint(run, save):
    for step in (1, 2, 3):
        save(step)
    paths = [run / "checkpoints" / f"step-0000000{step}" for step in (3, 2, 1)]
    for path in paths[:2]:
        (path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"use '.*step-00000001' of the same run"):
        read_checkpoint(run)
    folders = " and ".join(f"'{path}'" for path in paths[:2])
    with pytest.raises(UserError) as error:
        read_checkpoint(run, with_training_state=True)
    expected = f"remove the damaged folders {folders}, and --resume goes on from step 1"
    assert str(error.value).endswith(expected)
    (paths[2] / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no other whole checkpoint; begin anew with --overwrite"):
        read_checkpoint(run, with_training_state=True)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_longer_or_missing_file_is_found(save, name):
    path = save(1, ema=True)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{name} is truncated: {len(content) - 1} of its"):
        read_checkpoint(path)
    (path / name).write_bytes(content + b"\0")
    with pytest.raises(UserError, match=f"{name} was altered: it has {len(content) + 1} bytes"):
        read_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing; the run has no other checkpoint"):
        read_checkpoint(path)


def test_a_config_of_another_run_is_found(save):
    path = save(1)
    settings = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**settings, "n_layer": 9, "other": 1}))
    with pytest.raises(UserError, match=r"config.yaml was altered"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "manifest.json is missing"),
        ("", "manifest.json is damaged"),
        ("[]", "manifest.json is damaged"),
        ('{"format": 1, "step": 1}', "manifest.json is damaged"),
        (
            '{"format": 1, "step": 1, "valid_bpb": null, "files": {"a": 3}}',
            "manifest.json is damaged",
        ),
        (
            '{"format": 1, "step": 1, "valid_bpb": null, "files": {}}',
            "does not list model.safetensors",
        ),
        ('{"format": 2, "step": 1, "valid_bpb": null, "files": {}}', "format 2"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named(run, save, content, message):
    path = save(1, valid_bpb=2.0)
    if content is None:
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)
    with pytest.raises(UserError, match="none is the best"):
        find_checkpoint(run, "best")


def test_the_training_state_is_not_read_for_sampling(save):
    path = save(1)
    content = (path / "training_state.pt").read_bytes()
    (path / "training_state.pt").write_bytes(bytes(len(content)))
    assert read_checkpoint(path).training_state is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.popitem(), "is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra has no place in the model"),
        (
            lambda state: state.update(dict.fromkeys(state, torch.zeros(7, 7, 7))),
            r"shape \[7, 7, 7\]",
        ),
    ],
)
def test_weights_that_the_config_does_not_describe_are_refused(run, save, config, change, message):
    state = GPT(config.model).state_dict()
    change(state)
    save(1, model_state=state)
    with pytest.raises(UserError, match=f"are not those of its configuration: .*{message}"):
        load_checkpoint(run)


def test_a_tokenizer_of_another_size_is_refused(run, save):
    save(1, tokenizer=CharTokenizer("abc"))
    with pytest.raises(UserError, match="a tokenizer of 3 symbols and a model of 256"):
        load_checkpoint(run)


def test_the_manifest_can_be_checked_by_other_programs(save):
    path = save(8, valid_bpb=1.25)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["valid_bpb"]) == (1, 8, 1.25)
    for name, entry in manifest["files"].items():
        content = (path / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_run_on_another_device_is_loaded_with_another_engine(save, run, make_config):
    config = make_config(engine="triton")
    save(1, config=config)
    with pytest.raises(UserError, match="'triton' cannot run here"):
        load_checkpoint(run)
    model, _, found = load_checkpoint(run, engine="views")
    assert model.engine()[0] == found.model.engine == "views"


def test_the_digest_is_of_the_weights_that_loading_takes(save, run):
    for step, ema in ((1, False), (2, True)):
        path = save(step, ema=ema)
        weights = path / ("ema.safetensors" if ema else "model.safetensors")
        assert weights_sha256(path) == hashlib.sha256(weights.read_bytes()).hexdigest()
