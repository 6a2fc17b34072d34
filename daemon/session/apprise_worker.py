"""The process that sends notices.

Its first input is the list of addresses; each later one is a message, which it answers with one
``Delivery`` per address. It reads the secrets itself and puts none into an answer. As a separate
process it can be killed when an address hangs, and it takes no time from the daemon's interpreter.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final

from msgspec import Struct, convert

from tracepaper.daemon.config.secrets import is_reference, read_secret, without
from tracepaper.daemon.session.child import (
    frame_of,
    limit_this_process,
    messages_of,
    reserve_stdout,
)
from tracepaper.strategies.errors import ConfigInvalid

NICE: Final = 10
ERROR_MOST: Final = 300  # characters


class Message(Struct, frozen=True):
    """A notice for every address."""

    title: str
    body: str


class Delivery(Struct, frozen=True):
    """The result of sending a message to one address; ``error`` is empty on success."""

    address: str  # as configured: a reference or a plain address
    error: str = ""


Send = Callable[[Message], str]
"""Sends a message and returns the error, empty on success."""


def sender(address: str) -> Send:
    """Return the sender for a configured *address*, which always fails if that is invalid."""
    import apprise

    try:
        secret = read_secret(address, os.environ) if is_reference(address) else address
    except ConfigInvalid as error:
        return _always(str(error))
    server = apprise.Apprise()
    if not all(server.add(url) for url in secret.split()):
        return _always("Apprise does not support this address; see Apprise's documentation")

    def send(message: Message) -> str:
        try:
            # Plain text: Apprise escapes it for services that expect HTML.
            result = server.notify(message.body, title=message.title, body_format="text")
            text = "" if result else " ".join(entry.message for entry in result.logs())
        except Exception as error:  # noqa: BLE001 - a plugin's fault is a failed delivery
            result, text = None, f"{type(error).__name__}: {error}"
        if result:
            return ""
        text = " ".join(text.split()) or "the service did not accept it"
        return (without(text, secret) if is_reference(address) else text)[:ERROR_MOST]

    return send


def _always(error: str) -> Send:
    return lambda _message: error


def main() -> None:
    """Send each message of standard input to all addresses at once, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon handles Ctrl-C
    limit_this_process(nice=NICE, reads_input=True)
    output = reserve_stdout()  # plugins may print
    messages = messages_of(sys.stdin.buffer)
    senders = {address: sender(address) for address in convert(next(messages, ()), list[str])}
    output.write(frame_of(None))

    def deliver(address: str, message: Message) -> None:
        output.write(frame_of(Delivery(address, senders[address](message))))

    for received in messages:
        message = convert(received, Message)
        for address in senders:
            threading.Thread(target=deliver, args=(address, message), daemon=True).start()
    os._exit(0)  # do not wait for threads that hang


if __name__ == "__main__":
    main()
