"""The candidate: a trained and quantized model that has not passed the gate."""

from __future__ import annotations

from edge_client.contract.documents import Document
from edge_client.contract.release import Preprocessing  # noqa: TC001 - msgspec resolves it at run time
from luigi_tasks.quantize import QuantizationRecord  # noqa: TC001


class Candidate(Document, frozen=True, kw_only=True):
    """`candidate.json`, beside `model.tflite` and `float.tflite`.

    Attributes:
        release: The id that it would be published under.
        model_sha256: Hex digest of `model.tflite`.
        labels: Label of each output.
        preprocessing: Pixels to input.
        snapshot: Digest of the pictures that made it.
        quantization: How it was quantized.
    """

    release: str
    model_sha256: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    snapshot: str
    quantization: QuantizationRecord
