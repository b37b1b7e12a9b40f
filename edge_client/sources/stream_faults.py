"""Why a stream cannot be opened: OpenCV does not say, so its server is asked.

Only the camera learns the address: what is returned names no part of it but the host.
"""

from __future__ import annotations

import re
import socket
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

from edge_client.contract.addresses import HIDDEN, shown_address

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1935, "rtmps": 443}
_LIMIT_S = 5.0
_SILENT = 0
_ESCAPES = "in an address, write @ : / # ? % of a user or password as %40 %3A %2F %23 %3F %25"
_USER_WANTED = f"the camera asks for user and password: those in the address are missing or wrong; {_ESCAPES}"
_MEANINGS: dict[int | None, str] = {
    _SILENT: "the camera takes connections and answers nothing; check that the port is that of the stream",
    200: "the camera answers, but its stream cannot be played; choose H.264 or MJPEG in its settings",
    401: _USER_WANTED,
    403: _USER_WANTED,
    404: "the camera has no stream of this path; see its manual, or its settings, for the right one",
}
_STATUS = re.compile(r"(?:RTSP|HTTP)/[0-9.]+ ([0-9]{3}) ?([^\r\n]{0,60})")


def explain_stream(address: str) -> str:
    """Return why an address gives no stream, with the way out; "" if its server is not to blame.

    Takes at most a few seconds.
    """
    if address.lower().startswith("v4l2:"):
        return "a camera of this machine is given by its device alone, such as /dev/video0"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme.lower())
    except ValueError:
        host, port = HIDDEN, None
    if HIDDEN in {host, shown_address(address).partition("://")[2]}:
        return f"the address has no clear host and port; {_ESCAPES}"
    return "" if port is None else _explain_connection(address, host, port)


def _explain_connection(address: str, host: str, port: int) -> str:
    try:
        with socket.create_connection((unquote(host), port), _LIMIT_S) as connection:
            return _explain_status(_ask(connection, address))
    except socket.gaierror:
        return f"the network knows no host {host}; check its name, or give its IP address"
    except ConnectionRefusedError:
        return f"{host} refuses port {port}; check the port, and that the camera's stream is switched on"
    except OSError as e:
        return f"{host} does not answer at port {port} ({e}); check its power, cable and network"


def _ask(connection: socket.socket, address: str) -> int | None:
    """Return the status with which a server answers without a user; None if it was not asked."""
    parts = urlsplit(address)
    scheme, host = parts.scheme.lower(), parts.netloc.rpartition("@")[2]
    path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    if scheme == "rtsp":
        request = f"DESCRIBE rtsp://{host}{path} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    elif scheme == "http":
        request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n"
    else:
        return None
    connection.settimeout(_LIMIT_S)
    try:
        connection.sendall(request.encode("ascii"))
        found = _STATUS.match(connection.recv(1024).decode("latin-1"))
    except TimeoutError:
        return _SILENT
    except (OSError, UnicodeEncodeError):
        return None
    return int(found[1]) if found else None


def _explain_status(status: int | None) -> str:
    if status in _MEANINGS:
        return _MEANINGS[status]
    if status is not None and status >= 400:
        known = {one.value: one.phrase for one in HTTPStatus}
        return f"the camera answers {status} {known.get(status, '')}".rstrip()
    return ""
