"""What all commands do with their standard output."""

import os
import subprocess
import sys

import pytest


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
