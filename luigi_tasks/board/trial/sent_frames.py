"""Pictures that people send from the page *Try* into the inbox, as devices send frames."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.documents import encode_document
from edge_client.contract.messages import InboxRecord
from edge_client.contract.names import inbox_key

if TYPE_CHECKING:
    from luigi_tasks.board.pictures.orders import PictureReply
    from luigi_tasks.storage.store import Store

# Name under which they lie in the inbox, in the place of a device's id.
BOARD = "board"
# Longest side, as devices scale frames down by default ([inbox] longest_side).
FRAME_SIDE = 640
_TOP = 3
_DIGEST_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class SentFrame:
    """A frame in the inbox.

    Attributes:
        device: Name in the place of a device's id.
        picture: Name of the picture.
    """

    device: str
    picture: str


def send_frame(store: Store, reply: PictureReply, channel: str, at: str) -> SentFrame:
    """Write a picture and what a release said of it into the inbox; the record last, as devices do.

    Args:
        store: The bucket.
        reply: Has the frame as thumbnail, and one answer.
        channel: Channel whose release it was; empty: it was chosen otherwise.
        at: UTC, ISO 8601.
    Raises: TransportError; SettingsError.
    """
    [answer] = reply.answers
    digest = hashlib.sha256(reply.thumbnail).hexdigest()
    name = f"{at[:19].replace('-', '').replace(':', '')}-{digest[:_DIGEST_SHOWN]}"
    record = InboxRecord(
        device=BOARD,
        picture=f"{name}.jpg",
        sha256=digest,
        why="sent",
        label=answer.label,
        confidence=answer.confidence,
        sure=answer.sure,
        top=dict(answer.scores[:_TOP]),
        release=answer.release,
        channel=channel,
        at=at,
    )
    store.put(inbox_key(BOARD, record.picture), reply.thumbnail, content_type="image/jpeg")
    data = encode_document(record)
    store.put(inbox_key(BOARD, f"{name}.json"), data, content_type="application/json")
    return SentFrame(BOARD, record.picture)
