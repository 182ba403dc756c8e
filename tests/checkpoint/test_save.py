import errno
import json
import os
import resource
import shutil
import sys

import pytest
import torch

from sparse_tx.checkpoint import find_checkpoint, list_checkpoints, read_checkpoint
from sparse_tx.data import ByteTokenizer
from sparse_tx.errors import UserError
from sparse_tx.files import sync, write_atomically


def steps(run):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(run)]


def hidden(run):
    return [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


def test_what_is_saved_is_read_back(run, save, config):
    training_state = {
        "rng": torch.get_rng_state(),
        "optimizer": {
            "state": {0: {"step": torch.tensor(7.0)}},
            "groups": [{"betas": (0.9, 0.95)}],
        },
        "plain": [None, True, 3, 0.5, "é", b"\xff"],
    }
    path = save(1200, ema=True, training_state=training_state)
    assert path == run / "checkpoints" / "step-00001200"
    assert sorted(file.name for file in path.iterdir()) == [
        "config.yaml",
        "ema.safetensors",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "training_state.pt",
    ]
    checkpoint = read_checkpoint(path, with_training_state=True)
    assert (checkpoint.path, checkpoint.step, checkpoint.config) == (path, 1200, config)
    assert isinstance(checkpoint.tokenizer, ByteTokenizer)
    assert all((tensor == 1200).all() for tensor in checkpoint.model_state.values())
    assert all((tensor == 1200.5).all() for tensor in checkpoint.ema_state.values())
    found = checkpoint.training_state
    assert torch.equal(found.pop("rng"), training_state.pop("rng"))
    assert found == training_state
    assert hidden(run) == []


def test_precision_and_views_of_one_storage_survive(save):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {
        "tied": whole,
        "head": whole,
        "column": whole[:, 1],
        "turned": whole.T,
        "half": whole.bfloat16(),
        "none": torch.empty(0),
        "number": torch.tensor(5),
    }
    found = read_checkpoint(save(1, model_state=state)).model_state
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_the_last_ones_stay_and_the_best_is_never_removed(run, save):
    bpb = {10: 3.0, 20: 2.0, 30: None, 40: 2.5, 50: 2.0, 60: None}
    kept = {
        10: [10],
        20: [10, 20],
        30: [20, 30],
        40: [20, 30, 40],
        50: [20, 40, 50],
        60: [20, 50, 60],
    }
    for step, value in bpb.items():
        save(step, valid_bpb=value, keep_last=2)
        assert steps(run) == kept[step]
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert best == {"step": 20, "valid_bpb": 2.0}  # the earlier of two equal ones
    assert find_checkpoint(run, "best").name == "step-00000020"
    save(70, valid_bpb=1.5, keep_last=1)
    assert steps(run) == [70]
    assert json.loads((run / "checkpoints" / "best.json").read_text())["step"] == 70


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_loss_that_is_no_number_is_never_the_best(run, save, value):
    save(1, valid_bpb=value)
    with pytest.raises(UserError, match="none is the best; take the latest, step-00000001"):
        find_checkpoint(run, "best")
    save(2, valid_bpb=9.0)
    save(3, valid_bpb=value)
    assert find_checkpoint(run, "best").name == "step-00000002"


def test_a_step_saved_again_is_replaced_and_keeps_its_figure(run, save):
    save(5, valid_bpb=2.0, ema=True)
    save(5, training_state={"again": True})
    assert steps(run) == [5]
    assert hidden(run) == []
    checkpoint = read_checkpoint(run, with_training_state=True)
    assert checkpoint.training_state == {"again": True}
    assert checkpoint.ema_state is None
    assert find_checkpoint(run, "best") == checkpoint.path


class DiskFull:
    """A stand-in for a function that writes."""

    def __call__(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["save_file", "torch.save", "yaml.safe_dump", "sync"])
def test_a_full_disk_leaves_the_previous_checkpoint_whole(run, save, monkeypatch, writer):
    save(1, valid_bpb=2.0, keep_last=1)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(f"sparse_tx.checkpoint.save.{writer}", DiskFull())
        with pytest.raises(UserError) as error:
            save(2, valid_bpb=1.0, keep_last=1)
    for part in ("step 2", "No space left on device", "step-00000001 is whole", "free some space"):
        assert part in str(error.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert hidden(run) == []
    save(2)
    assert steps(run) == [1, 2]


@pytest.mark.parametrize("large", ["model_state", "ema_state", "training_state"])
def test_the_writers_report_a_refused_write_as_the_system_does(run, save, large):
    """No monkeypatch: the system itself refuses to let a file grow."""
    small = {"model_state": {"w": torch.zeros(1)}, "ema_state": {"w": torch.zeros(1)}}
    save(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="File too large; step-00000001 is whole"):
            save(2, **{**small, large: {"w": torch.zeros(10_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(run) == [1]
    assert hidden(run) == []


def test_a_failed_first_save_says_that_there_is_nothing(save, monkeypatch):
    monkeypatch.setattr("sparse_tx.checkpoint.save.save_file", DiskFull())
    with pytest.raises(UserError, match="there is no earlier one"):
        save(1)


def test_an_interrupted_save_leaves_nothing_behind(run, save, monkeypatch):
    save(1)
    with monkeypatch.context() as patch:
        patch.setattr(
            "sparse_tx.checkpoint.save.sync", lambda path: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            save(2)
    assert steps(run) == [1]
    assert hidden(run) == []


def killed_at(operation, action):
    """Run ``action`` in a child that dies at its n-th file operation; say whether it died."""
    child = os.fork()
    if child == 0:
        left = operation

        def die(event, _):
            nonlocal left
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            action()
        finally:
            os._exit(0 if left >= 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("saved_again", [False, True])
def test_a_kill_at_any_file_operation_leaves_a_whole_run(run, save, monkeypatch, saved_again):
    # A process that dies leaves its writes to the system; only a power cut needs them on the disk.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    new = 2 if saved_again else 3
    state = {"new": True}
    operation = 0
    dead = True
    while dead:
        shutil.rmtree(run, ignore_errors=True)
        save(1, valid_bpb=1.0)
        if saved_again:
            shutil.rmtree(run)
        save(2)
        dead = killed_at(operation, lambda: save(new, keep_last=1, training_state=state))
        for path in list_checkpoints(run):
            read_checkpoint(path, with_training_state=True)
        latest = read_checkpoint(run, with_training_state=True)
        assert latest.step in (2, new)
        assert saved_again or 1 in steps(run)  # the best one
        if not dead:
            assert latest.training_state == state
        save(4)
        assert hidden(run) == []
        assert steps(run)[-1] == 4
        assert latest.step in steps(run)
        operation += 1
    assert operation > 15


def test_leftovers_of_killed_saves_are_cleaned_up(run, save):
    save(1)
    leftover = run / "checkpoints" / ".tmp-step-00000002"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (run / "checkpoints" / ".tmp-99-best.json").write_bytes(b"{")
    assert find_checkpoint(run).name == "step-00000001"
    save(2)
    assert hidden(run) == []
    assert steps(run) == [1, 2]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"rng": {"numpy": object()}}, r"training_state\['rng'\]\['numpy'\] is a object"),
        ({"list": [1, {2}]}, r"training_state\['list'\]\[1\] is a set"),
        ({(1, object()): 2}, "a key of training_state"),
    ],
)
def test_a_training_state_that_could_not_be_read_back_is_refused(run, save, state, where):
    with pytest.raises(TypeError, match=where):
        save(1, training_state=state)
    assert not run.exists()


def test_averaged_weights_of_another_model_are_refused(run, save):
    with pytest.raises(ValueError, match="do not both have a, b"):
        save(1, model_state={"a": torch.zeros(1)}, ema_state={"b": torch.zeros(1)})
    assert not run.exists()


def test_keep_last_below_1_would_keep_nothing(save):
    with pytest.raises(UserError, match="keep_last is 0"):
        save(1, keep_last=0)


def test_a_run_directory_that_is_a_file_is_a_mistake_of_the_user(run, save):
    run.write_text("")
    with pytest.raises(UserError, match="could not be saved"):
        save(1)


def test_write_atomically_takes_the_longest_name_that_there_is(tmp_path):
    path = tmp_path / ("x" * 255)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_write_atomically_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("sparse_tx.files.sync", DiskFull())
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    link = tmp_path / "link"
    link.symlink_to(path)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_every_file_is_on_the_disk_before_the_name_is(save, monkeypatch):
    synced = []

    def record(path):
        synced.append((path.parent.name, path.name))
        sync(path)

    monkeypatch.setattr("sparse_tx.checkpoint.save.sync", record)
    names = [file.name for file in save(1).iterdir()]
    *files, folder, parent = synced
    assert sorted(files) == sorted((".tmp-step-00000001", name) for name in names)
    assert folder == ("checkpoints", ".tmp-step-00000001")
    assert parent == ("run", "checkpoints")
