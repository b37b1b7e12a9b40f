"""Addresses of cameras and stores in a form that may be shown: without what a secret may be in.

A password is not the only secret of an address. The path of a stream is one with many cameras and recorders
(UniFi: rtsps://host:7441/TOKEN), queries carry passwords and signatures, a store behind a CDN may have a
token in its path. So scheme, host and port are shown, and nothing else.
"""

from __future__ import annotations

import re

# What stands for a part that is not shown.
HIDDEN = "…"
# Examples of our own messages, whose paths and passwords are no secrets.
CAMERA_EXAMPLE = "rtsp://user:password@camera/stream"
S3_EXAMPLE = "https://s3.<region>.amazonaws.com/<bucket>/<prefix>"
_EXAMPLES = (CAMERA_EXAMPLE, S3_EXAMPLE)
# A path that begins so was shown before, by `shown_below`.
_SHOWN_PATH = f"/{HIDDEN}/"

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_WITH_SECRET = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]*[@?][^\s'\"]*")
_PIPELINE = " ! "
# Schemes without the slashes behind them, as in a slip of the pen.
_SLIP = re.compile(r"(?P<scheme>rtsps?|rtmps?|rtp|https?|ftps?|srt|udp|tcp|mms|mqtts?|wss?):", re.IGNORECASE)
# An address without its scheme: host and query, or a first part that is host and port, or an IP address.
# A file of such a name is written with ./ in front.
_NO_SCHEME = re.compile(
    r"(?://)?(?:[\w.:-]+(?:/[^?#]*)?\?[\w.-]+=|(?=[^:/]*[A-Za-z.])[\w.-]+:[0-9]{1,5}/|[0-9]{1,3}(?:\.[0-9]{1,3}){3}/)"
)
_HOST = re.compile(r"(?:\[[\w:.%~-]+\]|\w[\w.~%-]*)(?::[0-9]{0,5})?")
_QUERY = re.compile(r"[^?#@]*\?[^=&@]+=")
_END_OF_AUTHORITY = re.compile(r"[/?#\\]")
# Behind an address in a sentence.
_PUNCTUATION = ".,:;!?\"'`)]}>"
# urllib3 names the path of a request apart from its host.
_PATH_OF_URLLIB3 = re.compile(r"(\burl: )/\S*")


def shown_address(address: str) -> str:
    """Return scheme, host and port of an address; a path of this machine as it is.

    A user or password in which @ : / # ? are not escaped makes an address ambiguous: where the host could be
    a part of it, the host is not shown either.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        return _shown_path(address)
    scheme, rest = parts["scheme"], parts["rest"]
    if scheme.lower() == "file" and rest.startswith("/"):
        return address
    return f"{scheme}://{_shown_host(rest) or HIDDEN}"


def is_address(text: str) -> bool:
    """Whether a text is meant as an address (or a pipeline of GStreamer), well-formed or not; else a path."""
    return "://" in text or _PIPELINE in text or shown_address(text) != text


def is_malformed(text: str) -> bool:
    """Whether a text is meant as an address, and lacks its scheme or the slashes behind it."""
    return is_address(text) and "://" not in text and _PIPELINE not in text


def with_escaped_user(address: str) -> str:
    """Return an address with / ? # @ of its user and password escaped, where they make it invalid as it is.

    rtsp://user:p#ss@camera/stream has no host, and the port `p`. An address that is valid stays as it is.
    """
    parts = _ADDRESS.fullmatch(address)
    end = _END_OF_AUTHORITY.search(parts["rest"]) if parts else None
    if parts is None or end is None:
        return address
    authority = parts["rest"][: end.start()]
    _, colon, port = authority.partition(":")
    if "@" in authority or not colon or port.isdecimal() or "]" in port:
        return address
    user, separator, behind = parts["rest"].rpartition("@")
    if not separator or not _HOST.fullmatch(_END_OF_AUTHORITY.split(behind)[0]):
        return address
    escaped = re.sub(r"[/?#@\\ ]", lambda found: f"%{ord(found[0]):02X}", user)
    return f"{parts['scheme']}://{escaped}@{behind}"


def shown_below(address: str, key: str) -> str:
    """Return a store's address and the key of an object in it, for messages."""
    shown = shown_address(address).rstrip("/")
    is_web = "://" in shown and not shown.startswith("file:")
    return f"{shown}{_SHOWN_PATH}{key}" if is_web else f"{shown}/{key}"


def without_secrets(text: str) -> str:
    """Return a text whose addresses are as of `shown_address`; for logs, and messages of libraries."""
    if "url: /" in text:
        text = _PATH_OF_URLLIB3.sub(rf"\1{HIDDEN}", text)
    return _IN_TEXT.sub(_replace, text) if "://" in text else text


def without_passwords(text: str) -> str:
    """Return a text whose addresses are as of `shown_address` where they have a user or a query."""
    return _WITH_SECRET.sub(lambda found: without_secrets(found[0]), text) if "://" in text else text


def _replace(found: re.Match[str]) -> str:
    whole = found[0]
    if any(whole.startswith(one) and not whole[len(one) :].strip(_PUNCTUATION) for one in _EXAMPLES):
        return whole
    address = whole.rstrip(_PUNCTUATION)
    if "[" in address and "]" not in address:  # the host is an IPv6 address, whose bracket was taken off
        address += "]"
    tail = whole[len(address) :]
    before, separator, key = address.partition(_SHOWN_PATH)
    if separator and not re.search(r"[?#@]", key):
        return f"{shown_address(before)}{separator}{key}{tail}"
    return f"{shown_address(address)}{tail}"


def _shown_host(rest: str) -> str:
    """Return host and port of what follows the scheme; "" if they are not certain."""
    end = _END_OF_AUTHORITY.search(rest)
    authority, behind = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    host = authority.rpartition("@")[2]
    if not _HOST.fullmatch(host):
        return ""
    # user:1/2@host and user:p@ss/word@host: what looks like a host may be a part of the password.
    if "@" in behind and not _QUERY.match(behind):
        return ""
    return host


def _shown_path(text: str) -> str:
    """Return a path as it is, unless it is a slip of the pen for an address."""
    if _PIPELINE in text:  # elements of GStreamer, any of which may have a password among its properties
        return f"{text.split(maxsplit=1)[0]} {HIDDEN}"
    if slip := _SLIP.match(text):
        return f"{slip['scheme']}:{HIDDEN}"
    before, _, behind = text.rpartition("@")
    # A file has no user and password: `user:password@camera/stream` is an address without its scheme.
    if ":" in before and behind and not text.startswith(("/", ".", "~")):
        return HIDDEN
    if _NO_SCHEME.match(text):
        return HIDDEN
    return without_secrets(text)
