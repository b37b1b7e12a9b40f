"""A network camera over HTTP: a stream of pictures, single pictures, and what goes wrong with them."""

from __future__ import annotations

import base64
import http.server
import io
import threading
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.fakes.tiny_model import plain_picture

if TYPE_CHECKING:
    from typing_extensions import Self

USER, PASSWORD = "viewer", "S3@CRET"


def jpeg(label: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(plain_picture(label, 48, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


class NetworkCamera:
    """Serves /stream, /snapshot and, for `USER` alone, /private; everything else is not found."""

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
        elif path == "/snapshot":
            picture = jpeg("blue")
            request.send_response(200)
            request.send_header("Content-Type", "image/jpeg")
            request.send_header("Content-Length", str(len(picture)))
            request.end_headers()
            request.wfile.write(picture)
        elif path in {"/stream", "/private"}:
            self._stream(request)
        else:
            request.send_error(404)

    def _stream(self, request: Any) -> None:
        picture = jpeg("blue")
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        try:
            while not self._closed.wait(0.02):
                request.wfile.write(head + picture + b"\r\n")
        except OSError:
            pass  # the reader went away
