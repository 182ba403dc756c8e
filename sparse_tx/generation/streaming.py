"""Text from bytes that arrive a few at a time."""

import codecs


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
