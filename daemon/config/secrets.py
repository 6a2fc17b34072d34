"""Secrets: references to them, and the search for secrets written into a configuration.

A run stores its configuration, so it may not contain a secret. A key that needs one names an
environment variable, ``env:NAME``, or a credentials file, ``credential:NAME``, which is
``$CREDENTIALS_DIRECTORY/NAME`` (systemd's LoadCredential). The rule is docs/configuration.md, C9.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tracepaper.daemon.config.values import several
from tracepaper.strategies.errors import ConfigInvalid

CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
"""The variable in which systemd passes the folder of a service's credentials."""
FILE_LABEL: Final = "database"
"""The label of the token in the file beside the database."""
REFERENCE: Final = re.compile(
    r"env:(?P<variable>[A-Za-z_][A-Za-z0-9_]{0,99})|credential:(?P<file>\w[\w.@-]{0,99})", re.ASCII
)
_BYTES_MOST: Final = 65_536
_ADVICE: Final[dict[tuple[str, str], str]] = {
    ("notify", "addresses"): (
        'put it into an environment variable and write "env:NAME" in its place, or into a file of '
        '$CREDENTIALS_DIRECTORY and write "credential:NAME"'
    ),
    **dict.fromkeys(
        (("strategy", "options"), ("model", "options")),
        'take it out, or write "env:NAME" and let your class read that environment variable',
    ),
}
_TRANSPORTS: Final = frozenset(
    {"http", "https", "ws", "wss", "sqlite", "file", "postgresql", "mysql", "s3", "ftp", "sftp"}
)
_PLAIN: Final = frozenset(
    {"json", "jsons", "xml", "xmls", "form", "forms", "mailto", "mailtos", "syslog"}
)
"""Apprise's schemes whose addresses contain no secret by design."""
_PLAIN_QUERY: Final = frozenset(
    {"to", "from", "cc", "bcc", "name", "smtp", "mode", "format", "method", "verify", "cto", "rto"}
)
_SCHEME: Final = re.compile(r"\b([a-z][a-z0-9+.-]{1,30})://", re.IGNORECASE)
_USER: Final = re.compile(r"\b[a-z][a-z0-9+.-]{1,30}://[^/?#\s]*@", re.IGNORECASE)
_TOKENS: Final = re.compile(
    r"\b\d{6,12}:[\w-]{30,}"  # a Telegram bot's token
    r"|\b(gh[pousr]_|github_pat_|glpat-|npm_|pypi-|xox[abeprs]-|[spr]k[-_]|AKIA|ASIA|SG\.)[\w.-]{12,}"
    r"|\beyJ[\w-]{8,}\.eyJ"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|hooks\.slack\.com/|discord(app)?\.com/api/webhooks/|api\.telegram\.org/bot|webhook\.office\.com/",
    re.ASCII,
)
_NAME: Final = re.compile(
    r"(^|[_\-.])(password|passwd|passphrase|secret|(api|private|access|secret|auth)[_\-]?key|apikey|"
    r"(access|auth|api|bot|bearer|refresh)[_\-]?token|credentials?)$",
    re.IGNORECASE,
)
TOKENS: Final = ("http", "tokens")
"""The only key that may hold secrets; runs do not store it."""
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


_TOKEN_LIKE: Final = re.compile(r"(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{20,}", re.ASCII)


def is_reference(text: str) -> bool:
    """Return whether *text* refers to a secret, as ``env:NAME`` or ``credential:NAME``."""
    return REFERENCE.fullmatch(text) is not None


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
        raise ConfigInvalid(f"{reference}: {path} is empty; write the address into it.")
    return text


def secret_in(text: str) -> str:
    """Describe the kind of secret that *text* seems to contain; return "" if it contains none."""
    if _USER.search(text):
        return "an address with a user"
    for scheme in _SCHEME.finditer(text):
        if scheme[1].lower() not in _TRANSPORTS | _PLAIN:
            return "an address of a messaging service"
    if _TOKENS.search(text):
        return "a token"
    for part in text.split():
        if "://" in part and any(_NAME.search(name) or name == "token" for name, _ in _query(part)):
            return "an address with a secret in its query"
    return ""


def secret_in_address(text: str) -> str:
    """Describe why the address *text* of notices may contain a secret; return "" if it cannot."""
    fault = secret_in(text)
    if fault or is_reference(text):
        return fault
    try:
        parts = urlsplit(text)
    except ValueError:
        return "a text that is no address"
    if parts.scheme not in _PLAIN:
        fault = f"a text that is no address of {', '.join(sorted(_PLAIN))}"
    elif not {name for name, _ in _query(text)} <= _PLAIN_QUERY:
        fault = "an address with a further query"
    elif any(_TOKEN_LIKE.fullmatch(unquote(part)) for part in parts.path.split("/")):
        fault = "an address whose path looks like a token"
    return fault


def faults_of_secrets(tables: object) -> Iterator[tuple[str, str, str]]:
    """Yield the section, key and error of each value in *tables* that contains a secret.

    *tables* maps sections to keys; values of another form are left to validation. An error names
    the kind of secret and where to put it, but contains no part of it.
    """
    for section, table in tables.items() if isinstance(tables, Mapping) else ():
        for key, value in table.items() if isinstance(table, Mapping) else ():
            if (section, key) == ("notify", "addresses"):
                secret = next(filter(None, map(secret_in_address, _texts(several(value)))), "")
            elif (section, key) == TOKENS:
                secret = ""  # no run stores them
            else:
                secret = _secret_of(str(key), value)
            if secret:
                owner = ("strategy", "options") if section == "strategies" else (section, key)
                advice = _ADVICE.get(owner, "take it out")
                fault = f"has {secret}, and a run stores its configuration; {advice}"
                yield str(section), str(key), fault


def without(text: str, secret: str) -> str:
    """Return *text* with every part of the secret address replaced by an ellipsis."""
    parts = {part for form in (secret, unquote(secret)) for part in re.split(r"[^\w-]+", form)}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= 4:
            text = text.replace(part, "…")
    return text


def _secret_of(name: str, value: object) -> str:
    """Describe the kind of secret in the *value* of a key *name*, or in tables and lists in it."""
    match value:
        case str():
            if secret := secret_in(value):
                return secret
            if isinstance(table := _from_json(value), dict):
                return _secret_of(name, table)
            return f"a text called {name!r}" if _is_secret(name, value) else ""
        case Mapping():
            pairs = [(str(key), item) for key, item in value.items()]
            secret = next(filter(None, (secret_in(key) for key, _ in pairs)), "")
            return secret or next(filter(None, (_secret_of(*pair) for pair in pairs)), "")
        case list() | tuple():
            return next(filter(None, (_secret_of(name, item) for item in value)), "")
        case _:
            return ""


def _is_secret(name: str, value: str) -> bool:
    """Return whether a key *name* declares its *value* a secret, and the value is no reference."""
    is_declared = bool(_NAME.search(name)) or (name.lower() == "token" and len(value) >= 16)
    return is_declared and bool(value) and not is_reference(value)


def _from_json(text: str) -> object:
    """Parse *text* as a JSON object; return None for other text."""
    try:
        return json.loads(text) if text.lstrip().startswith("{") else None
    except (json.JSONDecodeError, RecursionError):
        return None


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            yield from _texts([*value, *value.values()])
        case list() | tuple():
            for item in value:
                yield from _texts(item)
        case _:
            pass


def _query(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(urlsplit(text).query, keep_blank_values=True)
    except ValueError:
        return []
