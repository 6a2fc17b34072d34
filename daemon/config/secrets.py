"""Secrets: the references that a configuration holds in their place, and where they are read.

A run stores its configuration, so it may not contain a secret. A key that needs one names an
environment variable, ``env:NAME``, or a credentials file, ``credential:NAME``, which is
``$CREDENTIALS_DIRECTORY/NAME`` (systemd's LoadCredential). The rule is docs/configuration.md, C9.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from tracepaper.strategies.errors import ConfigInvalid

CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
"""The variable in which systemd passes the folder of a service's credentials."""
FILE_LABEL: Final = "database"
"""The label of the token in the file beside the database."""
REFERENCE: Final = re.compile(
    r"env:(?P<variable>[A-Za-z_][A-Za-z0-9_]{0,99})|credential:(?P<file>\w[\w.@-]{0,99})", re.ASCII
)
_BYTES_MOST: Final = 65_536
_SECRETS: Final = frozenset({"token", "secret", "password", "key"})
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
UNSHOWN: Final = frozenset({"addresses", "options", "tokens"})
"""Keys whose values no error shows."""
_REFUSAL: Final = (
    "{} must be env:NAME, an environment variable, or credential:NAME, a file of "
    f"${CREDENTIALS}, since a run stores its configuration"
)
TOKEN_LEAST: Final = 12
"""Fewest characters of a token."""
_LABEL: Final = re.compile(r"[\w.-]{1,40}")


def labelled_tokens(tokens: dict[str, str]) -> dict[str, str]:
    """Return *tokens*; raise ``ValueError`` for an invalid label, and for a weak token."""
    for label, token in tokens.items():
        if not _LABEL.fullmatch(label) or label == FILE_LABEL:
            raise ValueError(
                f"label a token by 1 to 40 letters, digits, - or _, and not {FILE_LABEL}"
            )
        if not is_reference(token):
            check_token(token)
    return tokens


def check_token(token: str) -> None:
    """Raise ``ValueError`` if *token* is too short, or cannot be sent in a header."""
    if len(token) < TOKEN_LEAST or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"write a token of at least {TOKEN_LEAST} ASCII characters without spaces")


def is_reference(text: str) -> bool:
    """Return whether *text* refers to a secret, as ``env:NAME`` or ``credential:NAME``."""
    return REFERENCE.fullmatch(text) is not None


def checked_reference(text: str) -> str:
    """Return *text*, an address of notices; raise ``ValueError`` if it is no reference."""
    if not is_reference(text):
        raise ValueError(_REFUSAL.format("an address of notices"))
    return text


def with_references(options: dict[str, object]) -> dict[str, object]:
    """Return *options*; raise ``ValueError`` where one that is called a secret is no reference.

    It is called so if the last word of its name is token, secret, password or key.
    """
    for name, value in _values("", options):
        words = _WORD.findall(name)
        is_secret = bool(words) and words[-1].lower() in _SECRETS and value is not None
        if is_secret and not (isinstance(value, str) and is_reference(value)):
            raise ValueError(_REFUSAL.format(f"an option called {name!r}"))
    return options


def _values(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield each value in the tables and lists of *value*, with the nearest key above it."""
    match value:
        case Mapping():
            for key, item in value.items():
                yield from _values(str(key), item)
        case list() | tuple():
            for item in value:
                yield from _values(name, item)
        case _:
            yield name, value


def read_secret(reference: str, environment: Mapping[str, str]) -> str:
    """Return the secret that *reference* names, without surrounding spaces.

    Raises ``ConfigInvalid`` if it cannot be read; the message contains no part of a secret.
    """
    parts = REFERENCE.fullmatch(reference)
    assert parts is not None, "the configuration has checked it"
    if (name := parts["variable"]) is not None:
        if text := environment.get(name, "").strip():
            return text
        raise ConfigInvalid(f"{reference} names an environment variable that is not set; set it.")
    folder = environment.get(CREDENTIALS, "")
    if not folder:
        raise ConfigInvalid(
            f"{reference} is a file of ${CREDENTIALS}, which is not set; hand it over by systemd's "
            f"LoadCredential={parts['file']}:PATH, or set the variable to the file's folder."
        )
    path = Path(folder) / parts["file"]
    try:
        with path.open("rb") as file:
            text = file.read(_BYTES_MOST).decode().strip()
    except OSError as error:
        raise ConfigInvalid(
            f"{reference}: {path} cannot be read ({error.strerror}); let user {os.getuid()} read "
            f"it, or hand it over by systemd's LoadCredential={parts['file']}:PATH."
        ) from None
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{reference}: {path} is not UTF-8 text; write it anew.") from None
    if not text:
        raise ConfigInvalid(f"{reference}: {path} is empty; write the secret into it.")
    return text


def without(text: str, secret: str) -> str:
    """Return *text* with every part of the secret address replaced by an ellipsis."""
    parts = {part for form in (secret, unquote(secret)) for part in re.split(r"[^\w-]+", form)}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= 4:
            text = text.replace(part, "…")
    return text
