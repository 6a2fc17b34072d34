"""The operating system's user of a local connection, from Linux's ``/proc/net``."""

from __future__ import annotations

import asyncio
import pwd
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

_TABLES: Final = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}
_LOCAL, _REMOTE, _UID = 1, 2, 7
"""Columns of the kernel's table (proc_pid_net(5))."""


def user_of(transport: asyncio.BaseTransport | None) -> str:
    """Return the user whose process is at the other end of *transport*.

    A name, or ``uid 10001`` without one. Empty if unknown: the other end is on another machine or
    in another container, or the system is not Linux. Through a tunnel, it is the user of the
    tunnel's process.
    """
    if transport is None:
        return ""
    near, far = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    if not near or not far:
        return ""
    ends = [_kernel_text(far), _kernel_text(near)]  # local and remote, seen from the other end
    try:
        table = _TABLES[_ip(far).version].read_text()
    except (OSError, ValueError):
        return ""
    for line in table.splitlines()[1:]:
        columns = line.split()
        if [columns[_LOCAL], columns[_REMOTE]] == ends:
            uid = int(columns[_UID])
            try:
                return pwd.getpwuid(uid).pw_name
            except KeyError:
                return f"uid {uid}"
    return ""


def _ip(address: tuple[str, int]) -> IPv4Address | IPv6Address:
    """Return the IP address; an IPv4 address of an IPv6 socket is returned as IPv4."""
    ip = ip_address(address[0].partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def _kernel_text(address: tuple[str, int]) -> str:
    """Return *address* in the kernel's format: 32-bit words in the machine's byte order."""
    packed = _ip(address).packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    digits = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{digits}:{address[1]:04X}"
