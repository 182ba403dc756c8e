"""Runs in processes of their own: which are done, in what order, and what is kept of them."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # in the runs' processes as well

from seeded_runs import finish_runs

from sparse_tx.errors import UserError


def square(tell, settings, folder):
    """Leaves a mark for each time that it is called."""
    mark = Path(folder) / f"{settings['n']}-{os.getpid()}"
    mark.touch()
    if settings["n"] == 13:
        raise ArithmeticError("thirteen")
    tell("result", {"square": settings["n"] ** 2})


def calls(folder):
    return sorted(int(path.name.split("-")[0]) for path in folder.iterdir())


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "marks"
    folder.mkdir()
    return partial(square, folder=str(folder)), folder


def squares(found):
    return [one["square"] for one in found]


def wanted(*numbers):
    return [{"n": n} for n in numbers]


def test_results_come_in_the_order_asked_for(work, tmp_path, capsys):
    run, folder = work
    found = finish_runs(run, wanted(5, 2, 7), tmp_path / "deep" / "journal", workers=2)
    assert squares(found) == [25, 4, 49]
    assert calls(folder) == [2, 5, 7]
    assert "3 of 3 runs" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "deep" / "journal").read_text().splitlines()]
    assert sorted(line["settings"]["n"] for line in lines) == [2, 5, 7]


def test_runs_of_the_journal_are_not_repeated(work, tmp_path):
    run, folder = work
    journal = tmp_path / "journal"
    finish_runs(run, wanted(5, 2), journal)
    with journal.open("a") as file:
        file.write('{"settings": {"n": 3}, "res')  # as a process leaves it that was killed
    found = finish_runs(run, wanted(3, 2, 5), journal, resume=True)
    assert squares(found) == [9, 4, 25]
    assert calls(folder) == [2, 3, 5]
    assert squares(finish_runs(run, wanted(3), journal, resume=True)) == [9]
    assert calls(folder) == [2, 3, 5]


def test_finished_runs_are_not_lost_without_resume(work, tmp_path):
    run, folder = work
    finish_runs(run, wanted(5), tmp_path / "journal")
    with pytest.raises(UserError, match="journal holds 1 finished runs; go on"):
        finish_runs(run, wanted(5), tmp_path / "journal")
    assert calls(folder) == [5]
    assert len((tmp_path / "journal").read_text().splitlines()) == 1


def test_a_run_that_fails_does_not_stop_the_others(work, tmp_path):
    run, folder = work
    journal = tmp_path / "journal"
    with pytest.raises(RuntimeError, match="thirteen"):
        finish_runs(run, wanted(2, 13, 5), journal, workers=1)
    assert squares(finish_runs(run, wanted(2, 5), journal, resume=True)) == [4, 25]
    assert calls(folder) == [2, 5, 13]


def test_results_say_the_commit_of_their_run(work, tmp_path, capsys):
    run, _ = work
    journal = tmp_path / "journal"
    finish_runs(run, wanted(2), journal)
    line = json.loads(journal.read_text())
    journal.write_text(json.dumps(line | {"commit": "abc"}) + "\n")
    capsys.readouterr()
    first, second = finish_runs(run, wanted(2, 3), journal, resume=True)
    assert first == {"square": 4, "commit": "abc"}
    assert second == {"square": 9, "commit": line["commit"]}
    assert "finished runs of other commits are taken too: abc" in capsys.readouterr().err
