"""The process that sends notices: addresses first, then messages, each with an answer an address.

Secrets are read here, and leave in no answer. A process of its own is ended where an address hangs,
and its work takes nothing from the interpreter that decides.
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
from tracepaper.daemon.session.child import frame_of, messages_of, stay_behind, take_output
from tracepaper.strategies.errors import ConfigInvalid

NICE: Final = 10
ERROR_MOST: Final = 300


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
    """Return the sender for a configured *address*; where it cannot be read, a sentence says so."""
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


def main() -> None:
    """Send each message of standard input to all addresses at once, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's
    stay_behind(nice=NICE, reads_input=True)
    output = take_output()  # what a plugin prints is no answer
    messages = messages_of(sys.stdin.buffer)
    senders = {address: sender(address) for address in convert(next(messages, ()), list[str])}
    output.write(frame_of(None))

    def deliver(address: str, message: Message) -> None:
        output.write(frame_of(Delivery(address, senders[address](message))))

    for given in messages:
        message = convert(given, Message)
        for address in senders:
            threading.Thread(target=deliver, args=(address, message), daemon=True).start()
    os._exit(0)  # a thread that hangs is not waited for


if __name__ == "__main__":
    main()
