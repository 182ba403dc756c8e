"""Many independent runs: a few at a time, each in a fresh process, kept as they finish.

A journal is a file of JSON lines, one for each finished run: its settings, its result, the commit.
After an interruption the runs that it holds are not repeated.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path

from sparse_tx.errors import UserError
from sparse_tx.profiler.processes import Tell, run_in_fresh_process
from sparse_tx.profiler.provenance import provenance

Work = Callable[[Tell, dict], None]
"""Does one run from its settings in a process of its own, and tells its ``result``."""


def finish_runs(
    work: Work, wanted: list[dict], journal: Path, *, workers: int = 2, resume: bool = False
) -> list[dict]:
    """The results of all ``wanted`` settings, in their order, each with the ``commit`` of its run.

    Progress goes to stderr. A run that fails does not stop the others.

    Args:
        work: a function at the top of a module.
        wanted: settings, as JSON holds them; they tell the runs apart.
        journal: the file of finished runs.
        workers: processes at a time, each with as many threads as this one has for torch.
        resume: take what the journal holds already, and keep all of it.

    Raises:
        UserError: the journal holds finished runs, and ``resume`` was not asked for.
        MemoryError: a run found no memory.
        RuntimeError: a run failed; those that finished are in the journal.
    """
    found = _read(journal)
    if found and not resume:
        raise UserError(
            f"{journal.name} holds {len(found)} finished runs; go on from them with --resume, or"
            " delete it"
        )
    todo = [settings for settings in wanted if _key(settings) not in found]
    journal.parent.mkdir(parents=True, exist_ok=True)
    # Written anew: the last line of an interrupted run may be torn.
    temporary = journal.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in found.values()))
    temporary.replace(journal)
    commit = provenance()["commit"]
    others = {found[key]["commit"] for key in map(_key, wanted) if key in found} - {commit}
    if others:
        _progress(f"finished runs of other commits are taken too: {', '.join(map(str, others))}")
    failed: Exception | None = None
    began = time.monotonic()
    with ThreadPoolExecutor(workers) as pool, journal.open("a") as lines:
        futures = {pool.submit(_one, work, settings): settings for settings in todo}
        try:
            for n, future in enumerate(as_completed(futures), 1):
                settings = futures[future]
                try:
                    line = {"settings": settings, "result": future.result(), "commit": commit}
                except (MemoryError, RuntimeError) as error:
                    failed = failed or error
                    _progress(f"failed: {settings}")
                    continue
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                found[_key(settings)] = line
                done = sum(_key(settings) in found for settings in wanted)
                left = (time.monotonic() - began) / n * (len(todo) - n)
                _progress(f"{done} of {len(wanted)} runs, about {left / 60:.0f} minutes left")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():  # else leaving the pool waits for their end
                with suppress(ValueError):  # it has just been closed
                    process.kill()
            raise
    if failed:
        raise failed
    lines_wanted = [found[_key(settings)] for settings in wanted]
    return [line["result"] | {"commit": line["commit"]} for line in lines_wanted]


def _one(work: Work, settings: dict) -> dict:
    ending = run_in_fresh_process(work, settings)
    if ending.cause:
        raise MemoryError(f"no memory was left for the run {settings}")
    return ending.told["result"][0]


def _read(journal: Path) -> dict[str, dict]:
    found = {}
    for text in journal.read_text().splitlines() if journal.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found[_key(line["settings"])] = line
    return found


def _key(settings: dict) -> str:
    return json.dumps(settings, sort_keys=True)


def _progress(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
