"""Access checks: the token of a request, and whether it comes from this machine."""

import base64
import binascii
import contextlib
import ipaddress


def secret_of(given: bytes) -> bytes:
    """Returns the token of an Authorization header, or a browser's password."""
    kind, _, rest = given.partition(b" ")
    if kind.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(rest, validate=True).partition(b":")[2]
    return rest.strip() if kind.lower() == b"bearer" else b""


def is_here(host: str) -> bool:
    """Whether a client's address is a loopback address of this machine."""
    try:
        address = ipaddress.ip_address(host)
        # A dual-stack socket reports IPv4 clients as ::ffff:a.b.c.d.
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return False
