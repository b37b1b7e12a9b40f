"""Record of a converted backbone."""

from __future__ import annotations

import msgspec

from edge_client.contract.documents import Document


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
