"""What all commands do with their standard output, with signals and with paths that cannot be."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from sparse_tx.commands import main as console
from sparse_tx.commands.shell import run_command


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_gets_one_sentence():
    call = "from sparse_tx.commands.pattern import main; raise SystemExit(main())"
    command = [sys.executable, "-c", call, "count", "local:3", "--seq_len=9"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert (
        done.stderr == "error: the output cannot be written: No space left on device; free some\n"
    )


def test_sigterm_unwinds_what_runs(capsys):
    left = []

    def work(argv):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            left.append("nothing")

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(work, []) == 143
    assert left == ["nothing"]
    assert capsys.readouterr().err == "terminated\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_path_that_nobody_may_enter_gets_one_sentence(capsys):
    def work(argv):
        raise PermissionError(errno.EACCES, "Permission denied", "no-entry/run")

    assert run_command(work, []) == 2
    assert capsys.readouterr().err == "error: 'no-entry/run': Permission denied; name another\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "--checkpoint"],
        ["evaluate", "--checkpoint"],
        ["train", "--preset=tiny", "--out"],
    ],
)
def test_a_name_that_is_too_long_gets_one_sentence(argv, capsys):
    assert console.main([*argv, "x" * 300]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: '") and "File name too long; name another" in said
    assert len(said.splitlines()) == 1


def test_other_errors_of_the_system_keep_their_traceback():
    def work(argv):
        raise OSError(errno.EIO, "Input/output error", "disk")

    with pytest.raises(OSError, match="Input/output error"):
        run_command(work, [])
