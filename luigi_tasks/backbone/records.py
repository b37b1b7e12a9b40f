"""Record of a converted backbone."""

from __future__ import annotations

from edge_client.contract.documents import Document


class BackboneRecord(Document, frozen=True, kw_only=True):
    """A frozen backbone in its TFLite forms, which lie beside as `<form>-<sha256>.tflite`.

    Attributes:
        forms: SHA-256 of each form's file: `float`, and the candidate's scheme.
        width: Features a picture.
        calibration: Content hashes of the pictures that set its scales and int8 ranges.
        made_with: Package versions.
    """

    forms: dict[str, str]
    width: int
    calibration: tuple[str, ...]
    made_with: dict[str, str]
