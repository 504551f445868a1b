"""An authority, and a certificate of it for 127.0.0.1, by OpenSSL's command."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Certificates(NamedTuple):
    ca: Path
    cert: Path
    key: Path


def made(directory: Path) -> Certificates:
    directory.mkdir()
    ca, ca_key, cert, key = (directory / name for name in ("ca.pem", "ca.key", "cert.pem", "cert.key"))
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _run(*new, "-days", "2", "-subj", "/CN=tests", "-keyout", str(ca_key), "-out", str(ca))
    signed = ["-CA", str(ca), "-CAkey", str(ca_key), "-addext", "subjectAltName=IP:127.0.0.1"]
    _run(*new, "-days", "2", "-subj", "/CN=node", *signed, "-keyout", str(key), "-out", str(cert))
    return Certificates(ca, cert, key)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
