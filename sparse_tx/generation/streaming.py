"""Text from bytes that arrive a few at a time."""

import codecs
from collections.abc import Sequence


class Utf8Stream:
    """Decode UTF-8 as it arrives, never giving out half a character.

    A byte that cannot be part of UTF-8 becomes U+FFFD. However the bytes are cut, the text is that
    of ``bytes.decode(errors="replace")`` on all of them.
    """

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        """Take the next bytes; return the characters that they complete."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return U+FFFD if the last character is incomplete, else nothing; begin anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class StopStream:
    """Pass bytes on as they arrive, up to a stop string.

    The stop string that is complete first ends the text right before its first byte; of several
    that end with the same byte, the longest does. Bytes that may begin a stop string are held back
    until that is decided. However the bytes are cut, what comes out is the same.

    Args:
        stops: the stop strings, none of them empty; without any, everything is passed on at once.

    Attributes:
        stopped: whether a stop string has come; what is fed after it is lost.
    """

    def __init__(self, stops: Sequence[bytes] = ()):
        assert all(stops), "an empty stop string"
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = b""
        self.stopped = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return those that are now known to be text."""
        if self.stopped:
            return b""
        data = self._held + data
        found = [(at + len(stop), at) for stop in self._stops if (at := data.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, b""
            return data[: min(found)[1]]
        passed = len(data) - self._undecided(data)
        self._held = data[passed:]
        return data[:passed]

    def finish(self) -> bytes:
        """Return what was held back, which no stop string follows any more."""
        rest, self._held = self._held, b""
        return rest

    def _undecided(self, data: bytes) -> int:
        """How many bytes at the end of ``data`` may begin a stop string: the most that may."""
        for n in range(min(len(data), self._longest - 1), 0, -1):
            if any(stop.startswith(data[-n:]) for stop in self._stops):
                return n
        return 0
