"""A file of measurements, one JSON object a line, from which a sweep that was killed goes on.

What a line stands for is its ``key`` (all that decides the cost of a setting) and ``on`` (machine,
torch and code); ``asked`` is how hard it was tried, and ``measurement`` what was found.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from sparse_tx.errors import UserError
from sparse_tx.profiler.measure import WANTS, Want
from sparse_tx.profiler.provenance import measured_on
from sparse_tx.profiler.records import Measurement, Setting


class MeasurementLog:
    """Measurements that outlive the process which made them.

    A line answers a question about the same setting on the same machine, torch and code, if it
    holds all that is asked for, or if it was made with no less asked for: as many rounds, the same
    things wanted, and limits as large. So a failure by a limit stands until a larger limit is asked
    for. Of several lines the last one counts.

    Args:
        path: the file; made with the first line. A line that a kill cut short is written over.

    Raises:
        UserError: the file cannot be read or written, or a line of it is no measurement.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read ({error.strerror}); name another file for measurements"
            ) from error
        self._whole, self._size = content.rfind(b"\n") + 1, len(content)
        self._is_cut = self._whole < self._size
        lines = content[: self._whole].splitlines()
        self._lines = [self._read(line, number) for number, line in enumerate(lines, start=1)]

    def find(
        self,
        setting: Setting,
        want: tuple[Want, ...],
        rounds: int,
        *,
        time_limit_s: float | None = None,
        memory_limit_bytes: int | None = None,
    ) -> Measurement | None:
        """What answers ``measure`` with the same arguments; None if no line does."""
        asked = _asked(want, rounds, time_limit_s, memory_limit_bytes)
        key, on = _key(setting), measured_on(setting.device)
        for line in reversed(self._lines):
            if line["key"] == key and line["on"] == on:
                found = _measurement(line["measurement"])
                if _holds_all(found, asked) or _as_much(line["asked"], asked):
                    return found
        return None

    def add(
        self,
        setting: Setting,
        measurement: Measurement,
        *,
        want: tuple[Want, ...] = WANTS,
        rounds: int,
        time_limit_s: float | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        """Append what ``measure`` found with these arguments; it is on the disk on return.

        Raises:
            UserError: the disk does not take it.
        """
        line = {
            "key": _key(setting),
            "on": measured_on(setting.device),
            "asked": _asked(want, rounds, time_limit_s, memory_limit_bytes),
            "measurement": asdict(measurement),
        }
        text = json.dumps(line).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                # Of another size, the file has been gone on with by another process.
                if self._is_cut and file.tell() == self._size:
                    file.truncate(self._whole)
                begin = file.seek(0, os.SEEK_END)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._is_cut = True
            with suppress(OSError):
                self._size = self.path.stat().st_size
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); make room there, and measure"
                " again: what it holds is not measured twice"
            ) from error
        self._whole, self._is_cut = begin + len(text), False
        self._lines.append(json.loads(text))

    def _read(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
            _measurement(found["measurement"])
            _as_much(found["asked"], found["asked"])
            found["key"], found["on"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of {self.path} is not a measurement; delete the line to measure"
                " that setting again, or the file to measure all"
            ) from error
        return found


def _key(setting: Setting) -> dict[str, Any]:
    """All that decides what a setting costs, as JSON gives it back."""
    training = setting.training
    key = {
        "work": setting.work,
        "device": setting.device,
        "model": asdict(setting.model),
        "batch_size": training.batch_size,
        "precision": training.precision,
    }
    if setting.work == "train":
        key |= {"optimiser": training.optimiser, "averages_weights": training.ema > 0}
    return json.loads(json.dumps(key))


def _asked(
    want: tuple[Want, ...],
    rounds: int,
    time_limit_s: float | None,
    memory_limit_bytes: int | None,
) -> dict[str, Any]:
    return {
        "want": sorted(want),
        "rounds": rounds,
        "time_limit_s": time_limit_s,
        "memory_limit_bytes": memory_limit_bytes,
    }


def _holds_all(found: Measurement, asked: dict[str, Any]) -> bool:
    """Whether nothing that is asked for is missing, whatever the limits were."""
    has = {
        "seconds": len(found.seconds) >= asked["rounds"],
        "peak": found.peak_bytes is not None,
        "parts": bool(found.parts_s),
    }
    return found.failure is None and all(has[name] for name in asked["want"])


def _as_much(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether no less was asked for before than now; a limit that is None is the largest."""
    return (
        set(now["want"]) <= set(before["want"])
        and now["rounds"] <= before["rounds"]
        and all(
            (inf if now[name] is None else now[name])
            <= (inf if before[name] is None else before[name])
            for name in ("time_limit_s", "memory_limit_bytes")
        )
    )


def _measurement(fields: dict[str, Any]) -> Measurement:
    return Measurement(**fields | {"seconds": tuple(fields["seconds"])})
