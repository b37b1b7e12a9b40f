"""Record of a converted backbone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document

if TYPE_CHECKING:
    from collections.abc import Mapping


class BackboneRecord(Document, frozen=True, kw_only=True):
    """A frozen backbone in its TFLite variants, stored next to the record as `<variant>-<sha256>.tflite`.

    Attributes:
        variants: SHA-256 of each variant's file: `float`, and the candidate's scheme.
        width: Features a picture.
        calibration: Content hashes of the pictures that set its scales and int8 ranges.
        made_with: Package versions.
    """

    variants: dict[str, str] = msgspec.field(name="forms")
    width: int
    calibration: tuple[str, ...]
    made_with: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen backbone, converted to TFLite.

    Attributes:
        record: Its calibration set, digests and width.
        files: TFLite file by variant: `float`, and the scheme.
        scheme: The scheme that it was converted for.
        key: Key of the backbone that its calibration set belongs to: network, weights and quantization.
    """

    record: BackboneRecord
    files: Mapping[str, bytes]
    scheme: str
    key: str
