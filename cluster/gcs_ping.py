"""Whether a GCS answers, asked without Ray: its client ends the process it is in when none does.

A GCS speaks gRPC, which is HTTP/2: a live server answers a client's greeting with its settings. A
port that merely accepts connections (a process that hangs, a forwarder) doesn't.
"""

import os
import socket

_TIMEOUT_S = 3.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS = 4
_HEADER_BYTES = 9


def answers(gcs_address: str, *, timeout_s: float = _TIMEOUT_S) -> bool:
    """Return whether the GCS at `host:port` answers within that time.

    Where Ray uses TLS, a connection must do: the greeting would need Ray's certificates.
    """
    host, _, port = gcs_address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as link:
            if os.environ.get("RAY_USE_TLS") == "1":
                return True
            link.sendall(_GREETING)
            header = link.recv(_HEADER_BYTES)
    except OSError:
        return False
    return len(header) > 3 and header[3] == _SETTINGS  # noqa: PLR2004 - length is 3 bytes, then type
