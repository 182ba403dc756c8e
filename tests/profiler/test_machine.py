"""Clocks, ceilings, memory and provenance of this machine."""

import json
import os
import shutil
import sys

import pytest
import torch

from sparse_tx.profiler import machine
from sparse_tx.profiler import provenance as module
from sparse_tx.profiler.machine import Stopwatch, measure_ceilings
from sparse_tx.profiler.memory import control_group_rooms, free_bytes, memory_field
from sparse_tx.profiler.processes import run_in_fresh_process
from sparse_tx.profiler.provenance import measured_on, provenance


def test_laps(monkeypatch):
    times = iter([1.0, 1.5, 4.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(times))
    watch = Stopwatch("cpu")
    assert watch.laps() == []
    watch.mark()
    watch.mark()
    assert watch.laps() == [0.5, 2.5]


def test_ceilings_count_flops_and_bytes(monkeypatch):
    """With a clock by which all takes two seconds."""
    monkeypatch.setitem(machine._GEMM, "cpu", 7)
    monkeypatch.setitem(machine._COPIED, "cpu", 1000)
    monkeypatch.setattr(machine, "_median_seconds", lambda run, device: run() is None or 2.0)
    found = measure_ceilings("cpu", torch.float64)
    assert found.gemm_flops_per_s == 7**3
    assert found.copy_bytes_per_s == 1000


def test_ceilings_are_measured(monkeypatch):
    monkeypatch.setitem(machine._GEMM, "cpu", 32)
    monkeypatch.setitem(machine._COPIED, "cpu", 1 << 16)
    found = measure_ceilings("cpu", torch.float32)
    assert found.gemm_flops_per_s > 0
    assert found.copy_bytes_per_s > 0


def test_fields_of_memory(tmp_path):
    table = tmp_path / "status"
    table.write_text("Name:\tx\nVmRSSx:\t 1 kB\nVmRSS:\t   17 kB\n")
    assert memory_field(str(table), "VmRSS") == 17 * 1024
    with pytest.raises(KeyError):
        memory_field(str(table), "Vm")
    assert 0 < free_bytes("cpu") < 1 << 50


def hold_and_free(tell):
    """After threads of torch have worked, and with memory that comes and goes."""
    from sparse_tx.profiler.memory import give_back_freed_memory, peak_resident_bytes, reset_peak
    from sparse_tx.profiler.memory import resident_bytes as held

    give_back_freed_memory()
    begin = held()
    pieces = [torch.ones(30_000) for _ in range(1000)]  # 120 MB
    tell("held", held() - begin)
    pieces.clear()
    tell("freed", held() - begin)
    reset_peak()
    begin = held()
    torch.ones(10_000_000)
    tell("peak", peak_resident_bytes() - begin)


def test_memory_that_is_freed_is_given_back():
    told = run_in_fresh_process(hold_and_free).told
    assert told["held"][0] > 119_000_000
    assert told["freed"][0] < 10_000_000
    assert 39_000_000 < told["peak"][0] < 60_000_000


def write_files(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


STAT = "anon 70\nactive_file 7\ninactive_file 2\ntotal_active_file 11\ntotal_inactive_file 5\n"


def test_limits_of_control_groups(tmp_path):
    group = "sys/fs/cgroup/a/b"
    write_files(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            f"{group}/memory.max": "1000\n",
            f"{group}/memory.current": "300\n",
            f"{group}/memory.stat": STAT,
            "sys/fs/cgroup/a/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.current": "5000\n",
            "sys/fs/cgroup/a/memory.stat": STAT,
            "sys/fs/cgroup/memory.max": "100\n",
            "sys/fs/cgroup/memory.current": "400\n",
            "sys/fs/cgroup/memory.stat": STAT,
        },
    )
    assert control_group_rooms(tmp_path) == [1000 - 300 + 9, 0]


def test_limits_of_the_older_control_groups_in_a_container(tmp_path):
    """The path is the host's, and what lies there is not to be seen from within."""
    top = "sys/fs/cgroup/memory"
    write_files(
        tmp_path,
        {
            "proc/self/cgroup": "12:cpu,cpuacct:/x\n11:memory:/docker/f00\n",
            f"{top}/memory.limit_in_bytes": "2000",
            f"{top}/memory.usage_in_bytes": "500",
            f"{top}/memory.stat": STAT,
        },
    )
    assert control_group_rooms(tmp_path) == [2000 - 500 + 16]


def test_no_control_groups(tmp_path):
    assert control_group_rooms(tmp_path) == []


def test_provenance_names_no_place(monkeypatch):
    arguments = ["--out=/srv/secret/a.json", "/srv/secret", "--pattern", "local:8,dense"]
    monkeypatch.setattr(
        sys, "argv", ["/srv/secret/sparse-tx", "profile", *arguments, "~/a", "../b"]
    )
    found = provenance("pytest")
    command = "sparse-tx profile --out=a.json secret --pattern local:8,dense a b"
    assert found["command"] == command
    text = json.dumps(found)
    for place in ("/srv", os.path.expanduser("~"), str(module._PACKAGE.parent)):
        assert place not in text
    assert {"torch", "pytest"} <= set(found["versions"])
    monkeypatch.setattr(sys, "argv", ["/srv/secret/attention.py"])
    assert provenance()["command"] == "python attention.py"


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_a_package_within_the_clone_of_another_project_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "sparse_tx")
    assert provenance()["commit"] is None
    assert provenance()["changed_files"] is None
    commit = ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c", "--allow-empty"]
    for command in (["init", "-q"], commit):
        module.subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert len(provenance()["commit"]) == 40
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "site-packages" / "sparse_tx")
    assert provenance()["commit"] is None


@pytest.mark.parametrize(
    ("flags", "name"),
    [("fpu avx avx2 avx512f", "AVX-512"), ("fpu avx2 avx", "AVX2"), ("avx", "AVX"), ("fpu", None)],
)
def test_the_widest_vectors_are_named(flags, name, monkeypatch):
    text = f"model name\t: Some CPU\nflags\t\t: {flags}\n"
    monkeypatch.setattr(module.Path, "read_text", lambda path: text)
    assert module.vector_instructions() == name


def test_a_system_that_does_not_tell_of_its_processor(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(module.Path, "read_text", missing)
    assert module.vector_instructions() is None


def test_code_that_kernels_share_counts_as_code():
    found = {path.name for path in module._source_files(module._PACKAGE / "native")}
    assert {"simd.h", "build.py"} <= found
    assert {"native", "cache"} <= set(module._COSTLY)


def test_what_measurements_must_share():
    found = measured_on("cpu")
    assert found == json.loads(json.dumps(found))
    assert found["torch"] == torch.__version__
    assert found["processor"]
