"""Check whether pretrained weights can be downloaded, without minutes of retries."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

_PATIENCE_S = 4.0


def reachable(address: str) -> bool:
    """Whether the server of a web address accepts connections; a proxy is assumed to."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_PATIENCE_S):
            return True
    except OSError:
        return False


def no_weights(what: str, reason: object) -> str:
    """The error for weights that are not available."""
    first_line = str(reason).strip().partition("\n")[0]
    return (
        f"models: the pretrained weights of {what} are not available ({first_line}); download the "
        "file elsewhere and name it as checkpoint: PATH, with normalize: pretrained and without "
        "pretrained: true"
    )
