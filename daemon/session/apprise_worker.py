"""The process that sends notices: messages on standard input, outcomes on its output.

The first line of input names the addresses, each further one is a message; the answers to a message
are a line for each address. Secrets are read here, and leave in no answer. A process of its own is
ended where an address hangs, and its work takes nothing from the interpreter that decides.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from tracepaper.daemon.config.secrets import is_reference, read_secret, without
from tracepaper.daemon.session.supervisor import stay_behind
from tracepaper.strategies.errors import ConfigInvalid

NICE: Final = 10
ERROR_MOST: Final = 300
READY: Final = b"ready"
"""The first line of output, once the addresses are read."""


class Message(Struct, frozen=True):
    """What is sent to every address."""

    title: str
    body: str


class Delivery(Struct, frozen=True):
    """What became of a message at one address; ``error`` is empty where it was taken."""

    address: str  # as configured: a reference or a plain address
    error: str = ""


Send = Callable[[Message], str]
"""Sends a message; returns why it was not taken, or an empty text."""


def sender(address: str) -> Send:
    """Return what sends to a configured *address*; where it cannot be read, that says so."""
    import apprise

    try:
        secret = read_secret(address, os.environ) if is_reference(address) else address
    except ConfigInvalid as error:
        return _always(str(error))
    server = apprise.Apprise()
    if not all(server.add(each) for each in secret.split()):
        return _always("Apprise knows no such address; compare it with Apprise's documentation")

    def send(message: Message) -> str:
        try:
            # As text: what a service takes as HTML is escaped.
            result = server.notify(message.body, title=message.title, body_format="text")
            text = "" if result else " ".join(entry.message for entry in result.logs())
        except Exception as error:  # noqa: BLE001 - a plugin's fault is a failed delivery
            result, text = None, f"{type(error).__name__}: {error}"
        if result:
            return ""
        text = " ".join(text.split()) or "it was not taken"
        return (without(text, secret) if is_reference(address) else text)[:ERROR_MOST]

    return send


def _always(error: str) -> Send:
    return lambda _message: error


def serve(addresses: Sequence[str], out: BinaryIO) -> None:
    """Send each message of standard input to all *addresses* at once, until the input ends.

    What became of it is written to *out*.
    """
    senders = {address: sender(address) for address in addresses}
    lock = threading.Lock()

    def deliver(address: str, message: Message) -> None:
        answer = msgspec.json.encode(Delivery(address, senders[address](message)))
        with lock:
            out.write(answer + b"\n")
            out.flush()

    out.write(READY + b"\n")
    out.flush()
    for line in sys.stdin.buffer:
        message = msgspec.json.decode(line, type=Message)
        for address in addresses:
            threading.Thread(target=deliver, args=(address, message), daemon=True).start()


def main() -> None:
    """Serve this process's input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's
    stay_behind(nice=NICE, reads_input=True)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints is no answer
    serve(msgspec.json.decode(sys.stdin.buffer.readline() or b"[]", type=list[str]), out)
    os._exit(0)  # a thread that hangs is not waited for


if __name__ == "__main__":
    main()
