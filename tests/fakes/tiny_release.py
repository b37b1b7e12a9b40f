"""A complete, consistent release around the tiny model, as a device gets it."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from edge_client.contract import names
from edge_client.contract.documents import encode_document
from edge_client.contract.preprocessing import PREPROCESSING_ID
from edge_client.contract.release import (
    HoldOut,
    Normalization,
    OperatingPoint,
    Preprocessing,
    ReleaseDocument,
    SelfTestCase,
    release_id,
)
from tests.fakes.tiny_model import plain_picture, tiny_labels, tiny_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) uint8 RGB without loss."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tiny_release(
    bias: int = 0,
    size: int = 32,
    labels: int = 3,
    *,
    model: bytes | None = None,
    hold_out: HoldOut | None = None,
    device_class: str = "",
    operating_point: OperatingPoint | None = None,
    evidence: str = "",
) -> tuple[ReleaseDocument, dict[str, bytes]]:
    """Build a release.

    Args:
        bias: See `tiny_model`; releases of different `bias` have different ids and, unless they
            differ by a multiple of `labels`, the same right answers from swapped outputs.
        size: Model input, pixels.
        labels: Number of labels.
        model: Another model's bytes under the same promises, for a release that must be refused.
        hold_out: See `ReleaseDocument`.
        device_class: See `ReleaseDocument`.
        operating_point: See `ReleaseDocument`.
        evidence: See `ReleaseDocument`.
    Returns: The document, and each file's name and content, `release.json` among them.
    """
    content = tiny_model(bias, size, labels) if model is None else model
    words = tiny_labels(labels, bias)
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=size, width=size, normalization=Normalization())
    return pack_release(
        content,
        words,
        preprocessing,
        {f"selftest-{word}.png": png(plain_picture(word, size, size)) for word in words},
        tuple(SelfTestCase(file=f"selftest-{word}.png", label=word, confidence=0.996) for word in words),
        operators={"MEAN": 2, "FULLY_CONNECTED": 4, "SOFTMAX": 2},
        architecture="tiny",
        accuracy=1.0,
        hold_out=hold_out,
        device_class=device_class,
        operating_point=operating_point,
        evidence=evidence,
    )


def pack_release(
    model: bytes,
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    pictures: Mapping[str, bytes],
    self_test: tuple[SelfTestCase, ...],
    **more: Any,
) -> tuple[ReleaseDocument, dict[str, bytes]]:
    """Return the document of a model, and each file's name and content; `more` goes to the document."""
    document = ReleaseDocument(
        release=release_id(model, labels, preprocessing, operating_point=more.get("operating_point")),
        model_sha256=hashlib.sha256(model).hexdigest(),
        model_bytes=len(model),
        labels=labels,
        preprocessing=preprocessing,
        quantization="int8",
        self_test=self_test,
        **{"operators": {}, **more},
    )
    files = dict(pictures)
    files[names.MODEL_FILE] = model
    files[names.LABELS_FILE] = ("\n".join(labels) + "\n").encode()
    files[names.RELEASE_FILE] = encode_document(document)
    return document, files


def write_release(
    folder: Path, bias: int = 0, size: int = 32, labels: int = 3, *, model: bytes | None = None
) -> ReleaseDocument:
    """Write `tiny_release` into `folder`, as a slot on a device holds it."""
    document, files = tiny_release(bias, size, labels, model=model)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return document
