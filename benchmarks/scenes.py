"""Scenes of freely placed digits, two of whose kinds change their class with the rest of the scene.

A scene is a square of grey on which three to five digits of the kinds 0 to 4 lie where they happen
to fall, apart from one another. In half of the scenes one digit, of the kinds 0 to 2, stands in a
frame. Wherever a framed digit is in a scene, near or far, its 3s and 4s are of other classes than
without one: what a convolution sees of the digit itself cannot tell, what attention finds elsewhere
can. A framed and a plain scene are laid out by the same rules, so that nothing but the frame says
which of them one is.
"""

from collections.abc import Sequence

import numpy as np
from digits import trimmed

from sparse_tx.errors import UserError

KINDS = 5
CLASSES = ("background", "0", "1", "2", "3", "4", "3 and a frame", "4 and a frame")
# A kind from here on has one more class: that of scenes with a framed digit.
FIRST_CONTEXT_KIND = 3
FRAMED_CLASSES = tuple(range(1 + KINDS, len(CLASSES)))
CONTEXT_CLASSES = (*range(1 + FIRST_CONTEXT_KIND, 1 + KINDS), *FRAMED_CLASSES)
# A frame is a line two pixels wide, one pixel off the box of its digit.
_GAP, _LINE = 1, 2
_MARGIN = _GAP + _LINE
# A frame and the mask of a neighbour, which goes a pixel beyond its box, do not touch.
_APART = _MARGIN + 1
_FEWEST, _MOST = 3, 5
_INK, _FRAME = 128, 255
_TRIES, _RESTARTS = 40, 200


class SceneMaker:
    """Composes scenes from the digits that it is given, and from no others.

    Args:
        images: digits ``(N, h, w)``, uint8, bright on black.
        labels: their kinds ``(N,)``; those of 5 and more are not used.
        size: edge of a scene in pixels.

    Raises:
        UserError: no digit of some kind, or scenes in which the digits have no room.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, size: int = 80):
        self.size = size
        self._digits = [[trimmed(image) for image in images[labels == k]] for k in range(KINDS)]
        for kind, digits in enumerate(self._digits):
            if not digits:
                raise UserError(
                    f"scenes need digits of the kinds 0 to {KINDS - 1}, and none of the"
                    f" {len(labels)} given is a {kind}; give more digits"
                )
        # Half of the edge holds one digit of the largest size, and what keeps it off the next.
        largest = max(max(digit.shape) for digits in self._digits for digit in digits)
        least = 2 * (largest + _APART + _MARGIN)
        if size < least:
            raise UserError(
                f"scenes of {size} pixels have no room for digits of {largest}; give a size of"
                f" {least} or more"
            )

    def compose(self, n: int, seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """``n`` scenes ``(n, size, size)`` and their classes, of the same shape; both uint8.

        Equal seeds give equal scenes.
        """
        rng = np.random.default_rng(seed)
        scenes = np.zeros((n, self.size, self.size), np.uint8)
        classes = np.zeros_like(scenes)
        for scene, mask in zip(scenes, classes, strict=True):
            self._draw(scene, mask, rng)
        return scenes, classes

    def _draw(self, scene: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
        framed = bool(rng.integers(2))
        kinds = [rng.integers(FIRST_CONTEXT_KIND), rng.integers(FIRST_CONTEXT_KIND, KINDS)]
        kinds += list(rng.integers(KINDS, size=rng.integers(_FEWEST, _MOST + 1) - len(kinds)))
        digits = [self._digits[kind][rng.integers(len(self._digits[kind]))] for kind in kinds]
        for number, (y, x) in enumerate(self._places(digits, rng)):
            digit, kind = digits[number], kinds[number]
            h, w = digit.shape
            scene[y : y + h, x : x + w] = digit
            context = framed and kind >= FIRST_CONTEXT_KIND
            own = 1 + kind + (KINDS - FIRST_CONTEXT_KIND if context else 0)
            mask[y - 1 : y + h + 1, x - 1 : x + w + 1][_widened(digit >= _INK)] = own
            if framed and number == 0:
                _draw_frame(scene, y, x, h, w)

    def _places(self, digits: list[np.ndarray], rng: np.random.Generator) -> list[tuple[int, int]]:
        """The upper left corner of every digit: all apart, and a frame off the scene's edge."""
        for _ in range(_RESTARTS):
            taken = np.zeros((self.size, self.size), bool)
            places = []
            for digit in digits:
                place = self._free_place(digit.shape, taken, rng)
                if place is None:
                    break
                places.append(place)
            else:
                return places
        raise UserError(
            f"{len(digits)} digits find no room in scenes of {self.size} pixels; give a larger size"
        )

    def _free_place(
        self, shape: tuple[int, int], taken: np.ndarray, rng: np.random.Generator
    ) -> tuple[int, int] | None:
        h, w = shape
        for _ in range(_TRIES):
            y = int(rng.integers(_MARGIN, self.size - h - _MARGIN + 1))
            x = int(rng.integers(_MARGIN, self.size - w - _MARGIN + 1))
            if not taken[y : y + h, x : x + w].any():
                taken[max(0, y - _APART) : y + h + _APART, max(0, x - _APART) : x + w + _APART] = (
                    True
                )
                return y, x
        return None


def _widened(ink: np.ndarray) -> np.ndarray:
    """Where ink or one of its eight neighbours is: ``(h, w)`` to ``(h + 2, w + 2)``, bool."""
    h, w = ink.shape
    wide = np.zeros((h + 2, w + 2), bool)
    for dy in range(3):
        for dx in range(3):
            wide[dy : dy + h, dx : dx + w] |= ink
    return wide


def _draw_frame(scene: np.ndarray, y: int, x: int, h: int, w: int) -> None:
    top, left = y - _MARGIN, x - _MARGIN
    bottom, right = y + h + _MARGIN, x + w + _MARGIN
    scene[top : top + _LINE, left:right] = _FRAME
    scene[bottom - _LINE : bottom, left:right] = _FRAME
    scene[top:bottom, left : left + _LINE] = _FRAME
    scene[top:bottom, right - _LINE : right] = _FRAME
