"""The address a page is served on: this machine alone unless asked otherwise, and a free port."""

import errno
import socket

from spectral.errors import ConfigError

LOOPBACK = "127.0.0.1"


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket that no process listens on yet.

    Args:
        host: name or address of this machine; a loopback address keeps other machines out.
        port: 0 takes a free one.

    Raises:
        ConfigError: the port is in use, not allowed, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ConfigError([f"--port {port} is no port; give 1 to 65535, or 0 for a free one"])
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError([f"--host {host!r} cannot be resolved; give an address of this machine"]) from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(64)
    except OSError as error:
        found.close()
        reasons = {
            errno.EADDRINUSE: f"--port {port} is in use; give another one, or --port 0 for a free one",
            errno.EACCES: f"--port {port} is not allowed; give one above 1023, or --port 0 for a free one",
            errno.EADDRNOTAVAIL: f"--host {host!r} is no address of this machine; leave it out for {LOOPBACK}",
        }
        message = reasons.get(error.errno or 0, f"--host {host!r} --port {port} cannot be used ({error.strerror})")
        raise ConfigError([message]) from error
    return found


def is_loopback(found: socket.socket) -> bool:
    """Tell whether only this machine can reach a bound socket."""
    address = str(found.getsockname()[0])
    return address.startswith("127.") or address == "::1"


def url(found: socket.socket) -> str:
    """Return where a browser on this machine finds the page."""
    address, port = found.getsockname()[:2]
    if address in ("0.0.0.0", "::"):
        address = LOOPBACK
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"
