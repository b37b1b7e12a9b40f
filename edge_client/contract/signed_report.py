"""A report as it goes over the broker: plain JSON, or in a DSSE envelope that the device's key signed.

The broker is not trusted. Of the devices that were enrolled with a key, only signed reports count.
Source: DSSE v1.0.2 (secure-systems-lab/dsse).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decode_document, encode_compact
from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.report import REPORT_LIMIT_BYTES, REPORT_PAYLOAD_TYPE, DeviceReport

if TYPE_CHECKING:
    from typing import Protocol

    from securesystemslib.signer import Key

    class Signature(Protocol):
        """What a signer returns.

        Attributes:
            keyid: Id of the public key, as securesystemslib derives it.
            signature: Hex.
        """

        @property
        def keyid(self) -> str: ...
        @property
        def signature(self) -> str: ...

    class ReportSigner(Protocol):
        """The key of a device; a `Signer` of securesystemslib is one, too."""

        def sign(self, payload: bytes) -> Signature: ...


# What is raised for JSON that is no envelope: securesystemslib takes its fields for what they should be.
NO_ENVELOPE = (msgspec.DecodeError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# An envelope has the payload in base64, and a signature.
WIRE_LIMIT_BYTES = REPORT_LIMIT_BYTES * 4 // 3 + 2048


@dataclasses.dataclass(frozen=True)
class WireReport:
    """A report that was received.

    Attributes:
        report: The report.
        is_signed: Whether the key that was asked for signed it.
    """

    report: DeviceReport
    is_signed: bool


def seal_report(report: DeviceReport, signer: ReportSigner | None) -> bytes:
    """Return the payload of a report; without a signer it is the plain document.

    The envelope is written here: a library for it would take 19 MB of a device's memory.
    """
    data = encode_compact(report)
    if signer is None:
        return data
    kind = REPORT_PAYLOAD_TYPE.encode()
    # The DSSE protocol's pre-authentication encoding, PAE(type, body).
    signature = signer.sign(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(data), data))
    return msgspec.json.encode(
        {
            "payload": data,  # base64, as msgspec writes bytes
            "payloadType": REPORT_PAYLOAD_TYPE,
            "signatures": [{"keyid": signature.keyid, "sig": bytes.fromhex(signature.signature)}],
        }
    )


def open_report(payload: bytes, source: str, key: Key | None) -> WireReport:
    """Return the report of a payload.

    Args:
        payload: As received.
        source: Topic, for messages.
        key: Public key of the device that the topic names; None: it was enrolled without one.
    Raises: InputError if it is none; TrustError if it is signed, and not with `key`.
    """
    if len(payload) > WIRE_LIMIT_BYTES:
        msg = f"{source}: {len(payload)} bytes, at most {WIRE_LIMIT_BYTES} are accepted; ignored"
        raise InputError(msg)
    if b'"payloadType"' not in payload[:4096] and b'"payloadType"' not in payload[-4096:]:
        return WireReport(_decode(payload, source), is_signed=False)
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - as above
    from securesystemslib.exceptions import VerificationError  # noqa: PLC0415

    try:
        envelope = Envelope.from_dict(msgspec.json.decode(payload))
    except NO_ENVELOPE as e:
        msg = f"{source}: no DSSE envelope ({type(e).__name__}); ignored"
        raise InputError(msg) from e
    if envelope.payload_type != REPORT_PAYLOAD_TYPE:
        msg = f"{source}: an envelope of {str(envelope.payload_type)[:80]!r}, expected {REPORT_PAYLOAD_TYPE}"
        raise InputError(msg)
    if key is None:
        return WireReport(_decode(envelope.payload, source), is_signed=False)
    try:
        envelope.verify([key], 1)
    except VerificationError as e:
        msg = f"{source}: not signed by the key that this device was enrolled with"
        raise TrustError(msg) from e
    return WireReport(_decode(envelope.payload, source), is_signed=True)


def _decode(data: bytes, source: str) -> DeviceReport:
    return decode_document(DeviceReport, data, source=source, limit_bytes=REPORT_LIMIT_BYTES)
