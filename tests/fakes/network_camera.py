"""Network cameras: over HTTP a stream of pictures and single pictures, over RTSP what goes wrong with one."""

from __future__ import annotations

import base64
import http.server
import io
import socketserver
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tests.fakes.tiny_model import plain_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

USER, PASSWORD = "viewer", "S3#/@CRET"


def jpeg_of(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def jpeg(label: str) -> bytes:
    return jpeg_of(plain_picture(label, 48, 64))


class NetworkCamera:
    """Serves /stream, /slow (ten a second), /snapshot and, for `USER` alone, /private; else 404."""

    def __init__(self) -> None:
        camera = self
        self.asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                camera.asked.append(self.path)
                camera._answer(self)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._closed = threading.Event()
        self.port = self._server.server_address[1]
        self.shown = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: Any) -> None:
        path = request.path.partition("?")[0]
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if path == "/private" and request.headers["Authorization"] != f"Basic {token}":
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="camera"')
            request.end_headers()
        elif path in {"/snapshot", "/night"}:
            picture = jpeg("blue") if path == "/snapshot" else jpeg_of(np.zeros((48, 64, 3), np.uint8))
            request.send_response(200)
            request.send_header("Content-Type", "image/jpeg")
            request.send_header("Content-Length", str(len(picture)))
            request.end_headers()
            request.wfile.write(picture)
        elif path in {"/stream", "/slow", "/private"}:
            self._stream(request, 0.1 if path == "/slow" else 0.02)
        else:
            request.send_error(404)

    def _stream(self, request: Any, every_s: float) -> None:
        picture = jpeg("blue")
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        try:
            while not self._closed.wait(every_s):
                request.wfile.write(head + picture + b"\r\n")
        except OSError:
            pass  # the reader went away


class RtspCamera:
    """Describes a stream over RTSP, and refuses each way to send it; notes the lines that it was asked."""

    def __init__(self) -> None:
        camera = self
        self.lines: list[str] = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while request := camera._read(self.rfile):
                    self.wfile.write(camera._answer(request))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _read(self, file: Any) -> list[str]:
        lines = []
        while line := file.readline().decode().strip():
            lines.append(line)
        self.lines += lines
        return lines

    def _answer(self, request: list[str]) -> bytes:
        number = next(line for line in request if line.startswith("CSeq"))
        description = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\n"
        if request[0].startswith("OPTIONS"):
            status, rest = "200 OK", "Public: DESCRIBE, SETUP, PLAY\r\n\r\n"
        elif request[0].startswith("DESCRIBE"):
            head = f"Content-Type: application/sdp\r\nContent-Length: {len(description)}\r\n\r\n"
            status, rest = "200 OK", head + description
        else:
            status, rest = "461 Unsupported Transport", "\r\n"
        return f"RTSP/1.0 {status}\r\n{number}\r\n{rest}".encode()
