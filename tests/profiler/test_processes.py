"""Fresh processes: what they tell, how they end, and that they end."""

import os
import signal
import subprocess
import sys
import threading
import time
from _thread import interrupt_main
from pathlib import Path

import pytest
import torch

from sparse_tx.errors import UserError
from sparse_tx.profiler.memory import limit_memory, memory_field
from sparse_tx.profiler.processes import run_in_fresh_process


def tell_about_itself(tell, word):
    tell("word", word)
    tell("word", word + word)
    tell("pid", os.getpid())
    tell("threads", torch.get_num_threads())
    tell("oom_score_adj", Path("/proc/self/oom_score_adj").read_text())
    print("not to be seen")
    os.write(2, b"nor this")


def test_what_it_tells_and_what_it_is(capfd):
    ending = run_in_fresh_process(tell_about_itself, "ab")
    assert (ending.cause, ending.killed) == (None, False)
    assert ending.told["word"] == ["ab", "abab"]
    assert ending.told["pid"] != [os.getpid()]
    assert ending.told["threads"] == [torch.get_num_threads()]
    assert ending.told["oom_score_adj"] == ["1000\n"]
    assert capfd.readouterr() == ("", "")


def raise_user_error(tell):
    raise UserError("the value is 3; it must be 2")


def divide_by_zero(tell):
    return 1 / 0


def end_without_a_word(tell):
    os.write(2, b"something was wrong")
    os._exit(3)


def test_errors_of_the_user_stay_such():
    with pytest.raises(UserError, match="the value is 3; it must be 2"):
        run_in_fresh_process(raise_user_error)


def test_defects_come_with_their_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in divide_by_zero.*ZeroDivisionError"):
        run_in_fresh_process(divide_by_zero)
    with pytest.raises(RuntimeError, match=r"(?s)with status 3 .*something was wrong"):
        run_in_fresh_process(end_without_a_word)


def hold(tell, n_bytes):
    """Hold that much memory for ever."""
    held = b"x" * n_bytes
    tell("pid", os.getpid())
    time.sleep(3600)
    return held


def hold_until_killed(tell, n_bytes):
    held = b"x" * n_bytes
    tell("pid", os.getpid())
    time.sleep(0.5)  # to be seen
    os.kill(os.getpid(), signal.SIGKILL)
    return held


def test_a_killed_process_had_no_memory():
    ending = run_in_fresh_process(hold_until_killed, 300_000_000)
    assert (ending.cause, ending.killed) == ("memory", True)
    assert ending.peak_bytes > 300_000_000


def allocate_beyond_a_limit(tell, allocate):
    limit_memory(100_000_000, "cpu")
    tell("limit", "set")
    allocate(90_000_000)
    tell("below", "went well")
    allocate(110_000_000)


def torch_empty(n_bytes):
    torch.empty(n_bytes, dtype=torch.uint8)


@pytest.mark.parametrize("allocate", [torch_empty, bytearray])
def test_a_limit_of_memory_holds(allocate):
    ending = run_in_fresh_process(allocate_beyond_a_limit, allocate)
    assert ending.told["below"] == ["went well"]
    assert (ending.cause, ending.killed) == ("memory", False)
    assert ending.peak_bytes > 0


def is_alive(pid):
    try:
        return memory_field(f"/proc/{pid}/status", "VmRSS") > 0
    except (OSError, KeyError):  # gone, or a zombie
        return False


def test_a_limit_of_time_ends_it():
    ending = run_in_fresh_process(hold, 1000, time_limit_s=1)
    assert ending.cause == "time"
    assert not Path(f"/proc/{ending.told['pid'][0]}").exists()


def hold_and_write(tell, path):
    path.write_text(str(os.getpid()))
    hold(tell, 1000)


def test_an_interrupt_ends_it(tmp_path):
    path = tmp_path / "pid"

    def interrupt():
        while not (path.exists() and path.read_text()):
            time.sleep(0.01)
        interrupt_main()

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        run_in_fresh_process(hold_and_write, path)
    interrupter.join()
    assert not Path(f"/proc/{path.read_text()}").exists()


_KILLED_PARENT = """
import sys
from pathlib import Path
from sparse_tx.profiler.processes import run_in_fresh_process
from tests.profiler.test_processes import hold_and_write
if __name__ == "__main__":
    run_in_fresh_process(hold_and_write, Path(sys.argv[1]))
"""


def test_it_does_not_outlive_its_parent(tmp_path):
    path, script = tmp_path / "pid", tmp_path / "script.py"
    script.write_text(_KILLED_PARENT)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, str(script), str(path)], env=environment)
    while not (path.exists() and path.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while is_alive(path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
