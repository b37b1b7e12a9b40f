"""Fingerprints of pictures: what tells frames of one scene from pictures of different scenes.

A fingerprint is the low frequencies of a picture, 89 coefficients of a cosine transform in one byte each.
Two are compared in two steps. The first is a dot product of the lowest frequencies, and finds candidates. The
second aligns the pair: what a small shift, zoom, turn and change of light explain is subtracted (the tangent
distance of Simard, LeCun and Denker, 1993), and the rest must be small against the pictures' edges. Rules,
and what they were chosen by: docs/decisions/0015-groups.md.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from luigi_tasks.dataset.records import FINGERPRINT_KIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SIDE, THUMB = 32, 16
# Of a file whose picture may have fewer pixels; to open each large file only for its size takes 0.2 ms.
LARGEST_DRAWING_BYTES = 4096
# Largest frequency that is kept of brightness and of colours, in half waves a picture.
LUMA, CHROMA = 8.0, 4.0
# Of those, what a candidate is found by.
FIRST_LUMA, FIRST_CHROMA = 5.0, 3.0
# A Gaussian of one pixel of the small picture: edges must be wider than what an alignment moves.
BLUR_PIXELS = 1.0
# Least cosine of a candidate; all frames of the flowers' bursts are above.
CANDIDATE = 0.85
# Largest rest of an alignment, as a share of the edges' energy, of two frames of one scene.
ALIKE = 0.15
# The rest in the fields of a picture that have edges, each counted alike; so much of it is compared too.
FIELDS_WEIGHT = 0.6
FIELD_FLOOR = 32.0
# Grey levels of detail below which a picture counts as empty, like one of a covered lens.
EMPTY_LEVELS = 1.0
EMPTY_BRIGHTNESS = 16.0
PAIRS_AT_ONCE = 256


def shrink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (32, 32, 3) of (H, W, 3) uint8 RGB, each at least 32."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))


def is_large_enough(data: bytes) -> bool:
    """Whether a file's picture has enough pixels to be compared.

    Drawings of 8x8 or 28x28 pixels differ by strokes that an alignment explains: four fifths of the preset
    `digits` were near-duplicates of one another.
    """
    if len(data) > LARGEST_DRAWING_BYTES:
        return True
    try:
        with Image.open(io.BytesIO(data)) as image:
            return min(image.size) >= SIDE
    except Exception:  # noqa: BLE001 - whoever decodes it says what is wrong with it
        return True


def encode(small: NDArray[np.uint8]) -> list[str]:
    """Return the fingerprints of (N, 32, 32, 3) uint8 RGB."""
    found: list[str] = []
    for start in range(0, len(small), PAIRS_AT_ONCE):
        rgb = small[start : start + PAIRS_AT_ONCE].astype(np.float32)
        luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
        reds, blues = rgb[..., 0] - rgb[..., 1], rgb[..., 2] - (rgb[..., 0] + rgb[..., 1]) / 2
        planes: tuple[NDArray[np.floating], ...] = (luma, reds, blues)
        waves = _waves(SIDE)
        parts = [
            np.matmul(np.matmul(waves, plane), waves.T)[:, own]
            for plane, own in zip(planes, _kept(SIDE), strict=True)
        ]  # each (N, coefficients)
        values = np.concatenate(parts, 1) * _BLUR
        scale = (np.abs(values).max(1, keepdims=True) / 127).astype(np.float16)
        levels = np.round(values / np.maximum(scale, np.float16(1e-3))).clip(-127, 127).astype(np.int8)
        brightness = luma.mean((1, 2)).round().astype(np.uint8)[:, None]
        rows = np.concatenate([brightness, scale.view(np.uint8), levels.view(np.uint8)], 1)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 3)))  # no = at the end of base64
        found += [FINGERPRINT_KIND + base64.b64encode(row.tobytes()).decode() for row in rows]
    return found


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Fingerprints in numbers.

    Attributes:
        levels: (N, 89) int8 coefficients.
        scale: (N, 1) float32 grey levels of one of them.
        first: (N, D) float32 of length 1, for the first step.
        brightness: (N,) mean of each picture.
    """

    levels: NDArray[np.int8]
    scale: NDArray[np.float32]
    first: NDArray[np.float32]
    brightness: NDArray[np.float32]

    @classmethod
    def decode(cls, texts: Sequence[str]) -> Fingerprints:
        """Return what `encode` made; each text must be of its kind."""
        data = base64.b64decode("".join([one[1:] for one in texts]))
        rows = np.frombuffer(data, np.uint8).reshape(len(texts), -1)
        rows = rows[:, : 3 + len(_BLUR)]
        scale = np.ascontiguousarray(rows[:, 1:3]).view(np.float16).astype(np.float32)
        levels = rows[:, 3:].view(np.int8)
        first = levels[:, _FIRST] * scale * _FIRST_WEIGHTS
        first = np.concatenate([first, np.full((len(texts), 1), _FIRST_FLOOR, np.float32)], 1)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        return cls(levels, scale, first, rows[:, 0].astype(np.float32))

    def __len__(self) -> int:
        return len(self.levels)

    def unlikeness(self, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return (P,) what alignments of P pairs leave unexplained, as a share of the edges; 0: the same.

        Args:
            one: (P,) rows.
            other: (P,) rows.
        """
        parts = [
            self._unlikeness(one[start : start + PAIRS_AT_ONCE], other[start : start + PAIRS_AT_ONCE])
            for start in range(0, len(one), PAIRS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _unlikeness(self, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.float32]:
        some, others = (self.levels[rows] * self.scale[rows] for rows in (one, other))
        mean = (some + others) / 2  # (P, coefficients)
        tangents = (mean @ _TANGENTS).reshape(len(one), 7, -1)  # (P, 7, pixels)
        rest = (some - others) @ _PIXELS
        products = tangents @ tangents.transpose(0, 2, 1)
        weight = np.einsum("pkk->p", products)[:, None, None] * 1e-6 + 1e-3
        amounts = np.linalg.solve(
            products + weight * np.eye(7, dtype=np.float32), tangents @ rest[:, :, None]
        )
        rest = rest - (tangents.transpose(0, 2, 1) @ amounts)[:, :, 0]
        rest, steepness = rest**2, (mean @ _EDGES) ** 2
        edges = steepness.sum(1)
        floor = EMPTY_LEVELS**2 * rest.shape[1]
        found = np.maximum(
            rest.sum(1) / (edges + floor),
            FIELDS_WEIGHT * _share_of_fields(rest @ _FIELDS, steepness @ _SLOPES),
        )
        # Nothing to be seen in either: brightness alone tells a covered lens from a white wall.
        apart = np.abs(self.brightness[one] - self.brightness[other]) > EMPTY_BRIGHTNESS
        found[(edges < 10 * floor) & apart] = 1.0
        return np.asarray(found, np.float32)


def _share_of_fields(rest: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (P,) what is left in the fields of a picture that have edges, each field alike.

    An outline before a plain wall has nearly all energy of a picture, and is much the same for other objects.

    Args:
        rest: (P, fields) energy that is left.
        edges: (P, fields) energy of the edges.
    """
    share = np.minimum(rest / (edges + FIELD_FLOOR), 1).sum(1)
    return np.asarray(share / np.maximum((edges / (edges + FIELD_FLOOR)).sum(1), 1), np.float32)


def _waves(size: int) -> NDArray[np.float32]:
    """Return the orthonormal cosine transform as (size, size): wave by position."""
    wave, place = np.mgrid[:size, :size]
    table = np.cos(np.pi * (place + 0.5) * wave / size) * np.sqrt(2 / size)
    table[0] /= np.sqrt(2)
    return np.asarray(table, np.float32)


def _frequencies(size: int) -> NDArray[np.float64]:
    down, across = np.mgrid[:size, :size]
    return np.asarray(np.hypot(down, across), np.float64)


def _kept(size: int, luma: float = LUMA, chroma: float = CHROMA) -> tuple[NDArray[np.bool_], ...]:
    """Return which coefficients are kept of brightness and of both colours; never the mean."""
    found = _frequencies(size)
    return tuple((found > 0) & (found <= limit) for limit in (luma, chroma, chroma))


def _make_tables() -> tuple[NDArray[np.float32], ...]:
    """Return maps from coefficients to pixels and to each tangent: (coefficients, pixels).

    An offset of light in each plane explains its mean, so means are subtracted. Colours have few waves: every
    second pixel of them is enough. A margin of one pixel is left out: gradients there are one-sided.
    """
    kept, waves = _kept(THUMB), _waves(THUMB)
    place = (np.arange(THUMB, dtype=np.float32) - (THUMB - 1) / 2) / THUMB * 2
    x, y = place[None, :], place[:, None]
    tables: list[list[NDArray[np.float32]]] = [[] for _ in range(8)]
    for plane, own in enumerate(kept):
        step = 2 if plane else 1
        count = own.sum()
        shown = np.stack([np.outer(waves[down], waves[across]) for down, across in np.argwhere(own)])
        shown *= step * THUMB / SIDE
        across, down = np.gradient(shown, axis=2), np.gradient(shown, axis=1)
        maps = (shown, across, down, across * x, across * y, down * x, down * y)
        inner = [one[:, 1:-1:step, 1:-1:step].reshape(count, -1) for one in maps]
        for table, one in zip(tables, inner, strict=False):
            table.append(one - one.mean(1, keepdims=True))
        tables[7].append(np.concatenate(inner[1:3], 1))
    return tuple(_block_diagonal(parts) for parts in tables)


def _block_diagonal(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return scipy.linalg.block_diag, whose import would take longer than all else here."""
    table = np.zeros(np.sum([one.shape for one in parts], 0), np.float32)
    row = column = 0
    for one in parts:
        table[row : row + one.shape[0], column : column + one.shape[1]] = one
        row, column = row + one.shape[0], column + one.shape[1]
    return table


def _make_fields() -> NDArray[np.float32]:
    """Return (pixels, 49): the field of each pixel of `_PIXELS`: 2 x 2 of light, one of each colour."""
    side = (THUMB - 2) // 2
    colours = np.eye(side**2, dtype=np.float32)
    light = colours.reshape(side, side, -1).repeat(2, 0).repeat(2, 1).reshape(-1, side**2)
    return np.concatenate([light, colours, colours])


_PIXELS, *_MOVES, _EDGES = _make_tables()
_FIELDS = _make_fields()
_PLANES = [(THUMB - 2) ** 2, (THUMB - 2) ** 2 * 5 // 4]  # where colours begin
# Edges of a plane are those across, then those down.
_SLOPES = np.concatenate([part for part in np.split(_FIELDS, _PLANES) for _ in range(2)])
_TANGENTS = np.concatenate([_PIXELS, *_MOVES], 1)
_HEIGHTS = np.concatenate([_frequencies(SIDE)[one] for one in _kept(SIDE)])
_BLUR = np.exp(-((_HEIGHTS * np.pi * BLUR_PIXELS / THUMB) ** 2) / 2).astype(np.float32)
_COLOURS = np.repeat([1.0, 2.0, 2.0], [one.sum() for one in _kept(SIDE)])
_FIRST = np.flatnonzero(np.where(_COLOURS > 1, FIRST_CHROMA, FIRST_LUMA) >= _HEIGHTS)
_FIRST_WEIGHTS = (_COLOURS * (1 + _HEIGHTS) ** 0.7 / _BLUR)[_FIRST].astype(np.float32)
# So empty pictures, which have no direction, are candidates of each other.
_FIRST_FLOOR = EMPTY_LEVELS * SIDE * 2
