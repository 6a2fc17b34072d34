"""The few datagrams that systemd reads: ready, alive, stopping (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Notifier:
    """Where systemd listens, and how often it wants to hear; silent where it does not."""

    address: str = ""
    watchdog_s: float | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Read ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``."""
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        wanted = is_ours and microseconds.isdigit() and int(microseconds) > 0
        return cls(
            environment.get("NOTIFY_SOCKET", ""),
            int(microseconds) / MICROSECONDS if wanted else None,
        )

    def send(self, *assignments: str) -> bool:
        """Send *assignments* such as ``READY=1``; return whether somebody could hear them."""
        if not self.address:
            return False
        # A leading @ stands for the zero byte of an abstract socket.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                message = "\n".join(assignments).encode()
                channel.sendto(message, socket.MSG_DONTWAIT, address)
            except OSError:
                # Nobody there, or a full queue: the daemon goes on, and the watchdog decides.
                return False
        return True
