"""Upload kept frames in a child process, whose memory is returned when it ends."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

from edge_client.children import FOLDER, describe_exit, environment, python_command, secrets
from edge_client.contract.documents import Document, decode_document
from edge_client.contract.errors import DeviceError, InputError

if TYPE_CHECKING:
    from edge_client.settings.file import Settings

_REPORT_LIMIT_BYTES = 65536


class UploadReport(Document, frozen=True, kw_only=True):
    """Result of an upload.

    Attributes:
        uploaded: Number of uploaded frames.
        error: Why the remaining frames were not uploaded; None if all were.
    """

    uploaded: int
    error: str | None


def upload_in_child(settings: Settings) -> UploadReport:
    """Upload the kept frames.

    Raises: DeviceError if the child cannot be started, crashes or hangs.
    """
    command = python_command("edge_client.inbox.upload_child")
    limit_s = settings.update.check_timeout_s
    try:
        child = subprocess.run(
            command,
            input=pickle.dumps((settings, secrets())),
            stdout=subprocess.PIPE,
            env=environment(),
            cwd=FOLDER,
            timeout=limit_s,
            check=False,
        )
        return decode_document(UploadReport, child.stdout, source="upload", limit_bytes=_REPORT_LIMIT_BYTES)
    except OSError as e:
        msg = f"{sys.executable} cannot be started: {e}; no upload until it can"
        raise DeviceError(msg) from e
    except subprocess.TimeoutExpired as e:
        msg = f"the upload took over {limit_s:g} s ([update] check_timeout_s); the next one continues it"
        raise DeviceError(msg) from e
    except InputError as e:
        death = describe_exit(child.returncode, "it crashed") or f"code {child.returncode}"
        msg = f"the upload ended without a report: {death}; see the log"
        raise DeviceError(msg) from e
