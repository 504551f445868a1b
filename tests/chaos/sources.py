"""A place to get a source distribution from that takes a second to build and needs nothing else."""

from __future__ import annotations

import contextlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BACKEND = """
import time, zipfile

def build_wheel(folder, config=None, metadata=None):
    time.sleep(1)
    name = "slowly_built-1.0-py3-none-any.whl"
    info = "slowly_built-1.0.dist-info/"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr("slowly_built.py", "")
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: slowly-built\\nVersion: 1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "slowly-built"
version = "1.0"
"""


def _archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in (
            ("backend.py", BACKEND),
            ("pyproject.toml", PROJECT),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: slowly-built\nVersion: 1.0\n"),
        ):
            info = tarfile.TarInfo(f"slowly_built-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return made.getvalue()


@contextlib.contextmanager
def sources() -> Iterator[str]:
    """The URL below which every path that ends so is this archive: another path, another environment."""
    archive = _archive()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, format: str, *args: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A builder was killed while it fetched."""

    with Quiet(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
