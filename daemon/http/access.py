"""Access control: tokens, host names, and the cookie that a browser gets for a token.

The rules are docs/operations.md, O6, and docs/page.md.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from tracepaper.daemon.config.secrets import check_token, is_reference, read_secret
from tracepaper.daemon.config.sections import HttpSection
from tracepaper.daemon.log import Logger
from tracepaper.strategies.errors import ConfigInvalid

GUESSES_MOST: Final = 20
"""Burst limit of wrong tokens; after it one per second is accepted."""
LOG_EVERY_S: Final = 60.0
_READS: Final = frozenset({"GET", "HEAD"})
_SCRIPT: Final = """
"use strict";
const status = document.querySelector("[role=status]");
const enter = async (token) => {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch("/session", { method: "POST", headers });
  // Another address than this one: a browser keeps a strict cookie back where it repeats a request
  // that came from another site.
  if (answer.ok) location.replace(`/?in${hash}`);
  else if (token) status.textContent = (await answer.json()).error;
};
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const hash = token ? "" : location.hash;
if (token) history.replaceState(null, "", "/");
document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  enter(event.target.elements.token.value.trim());
});
if (token || location.search !== "?in") enter(token);
"""
_SIGN_IN: Final = f"""<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta name="color-scheme" content="light dark">
    <title>tracepaper</title>
  </head>
  <body>
    <main>
      <h1>This page needs a token</h1>
      <p>Where the daemon runs, <code>tracepaper ui --link</code> prints an address that has it.</p>
      <form><label>Token <input name="token" type="password" autocomplete="off" required></label>
      <button>Open</button></form>
      <p role="status"></p>
    </main>
    <script>{_SCRIPT}</script>
  </body>
</html>
"""
_SIGN_IN_POLICY: Final = (
    "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; script-src "
    f"'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'"
)

log = Logger("http")


def tokens_of(section: HttpSection, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the tokens of *section* by label; references to a variable or file are resolved.

    Raises ``ConfigInvalid`` if one cannot be read, or if the page is served without tokens.
    """
    if section.page is not None and not section.tokens:
        raise ConfigInvalid(
            f"[http] page = {section.page} serves the page beyond this machine, and [http] tokens "
            'has no token; give one a label, such as tokens = {anna = "env:ANNA"}.'
        )
    tokens = {}
    for label, given in section.tokens.items():
        try:
            tokens[label] = read_secret(given, environment) if is_reference(given) else given
            check_token(tokens[label])
        except (ConfigInvalid, ValueError) as error:
            reason = str(error).rstrip(".")
            raise ConfigInvalid(f"[http] tokens, {label}: {reason}.") from None
    if len(set(tokens.values())) < len(tokens):
        raise ConfigInvalid("[http] tokens: two labels have one token; give each its own.")
    return tokens


def label_of(request: web.Request, tokens: Mapping[str, str]) -> str | None:
    """Return the label of the token that *request* sends; None if it is none of *tokens*."""
    header = request.headers.get("Authorization", "").encode(errors="replace")
    # All are compared in constant time, so that the duration reveals nothing about a token.
    labels = [
        label
        for label, token in tokens.items()
        if hmac.compare_digest(header, f"Bearer {token}".encode())
    ]
    return labels[0] if labels else None


def is_own_site(request: web.Request, is_allowed: Callable[[str], bool]) -> bool:
    """Return whether *request* names an allowed host and does not come from another site's page.

    ``Host`` reveals a foreign name that resolves to this machine (DNS rebinding), ``Origin`` a page
    of another site, and ``Sec-Fetch-Site`` its images and scripts, which send no ``Origin``. A link
    of another site may lead to ``/``.
    """
    origin = request.headers.get("Origin")
    host = request.headers.get("Host", "")
    site = request.headers.get("Sec-Fetch-Site")
    is_link = request.path == "/" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    try:
        named = urlsplit(f"//{host}")
        is_named = is_allowed(named.hostname or "") and "@" not in named.netloc
    except ValueError:
        return False
    return (
        is_named
        and origin in {None, f"http://{host}", f"https://{host}"}
        and (site in {None, "same-origin", "none"} or is_link)
    )


async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Return the answer of *handler*; turn an HTTP error into a JSON refusal."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return refusal(error.status, _UNANSWERED.get(error.status, f"{error.reason}."))


_UNANSWERED: Final = {
    404: "There is no such address; / is the page, and docs/http.md lists the others.",
    405: "This address takes no request of this kind.",
    413: "The request is too long; send a shorter one.",
}


def refusal(status: int, sentence: str) -> web.Response:
    """Return an error as JSON."""
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": sentence}),
        content_type="application/json",
    )


def unauthorized() -> web.Response:
    """Return the answer to a request without a valid token."""
    answer = refusal(
        401,
        "This address needs a token: send one of the daemon's [http] tokens, or the text of the "
        "file DATABASE.token, which each start writes anew, as Authorization: Bearer TOKEN.",
    )
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


class AccessControl:
    """Admits a request for one of *hosts* that has one of *tokens*, from any address.

    Client addresses mean nothing in a container's network, where every request comes from the
    gateway. A cookie is derived from a token; it allows reading, but no command.
    """

    def __init__(self, tokens: Mapping[str, str], hosts: Sequence[str]) -> None:
        self._tokens = tokens
        self._hosts = frozenset(host.lower() for host in hosts)
        self._cookies = {label: _cookie_of(token) for label, token in tokens.items()}
        self._wrong = 0.0  # recent wrong tokens; decreases by one per second
        self._counted_s = 0.0
        self._logged_s = -LOG_EVERY_S

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a request for another host, from another site, or without token or cookie."""
        if not is_own_site(request, self._hosts.__contains__):
            return refusal(403, "Ask by a name of [http] hosts, and not from another site's page.")
        if "Authorization" in request.headers:
            if not self._may_guess():
                return refusal(429, "Too many wrong tokens came; ask again in a few seconds.")
            if label_of(request, self._tokens) is None:
                self._count_wrong(request)
                return unauthorized()
        elif not (self._has_cookie(request) and _cookie_suffices(request)):
            is_page = request.method == "GET" and request.path == "/"
            return _sign_in_page() if is_page else unauthorized()
        return await answered(request, handler)

    async def sign_in(self, request: web.Request) -> web.StreamResponse:
        """Set the cookie of the admitted request's token."""
        answer = web.Response(status=204)
        if (label := label_of(request, self._tokens)) is not None:
            # Not Secure, since the page is usually served over plain HTTP on loopback or a tunnel.
            answer.set_cookie(
                _cookie_name(request),
                self._cookies[label],
                httponly=True,
                samesite="Strict",
                path="/",
            )
        return answer

    def _has_cookie(self, request: web.Request) -> bool:
        given = request.cookies.get(_cookie_name(request), "").encode(errors="replace")
        matches = [hmac.compare_digest(given, cookie.encode()) for cookie in self._cookies.values()]
        return any(matches)

    def _may_guess(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        self._wrong = max(0.0, self._wrong - (now_s - self._counted_s))
        self._counted_s = now_s
        return self._wrong + 1 <= GUESSES_MOST

    def _count_wrong(self, request: web.Request) -> None:
        """Count a wrong token; log it once a minute, without the token."""
        self._wrong += 1
        if self._counted_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = self._counted_s
            log.warning("a wrong token was sent to the page", remote=request.remote)


def _cookie_suffices(request: web.Request) -> bool:
    """Return whether a cookie suffices: a request that changes something needs the token."""
    return request.method in _READS or request.path == "/session"


def _cookie_of(token: str) -> str:
    return hmac.new(token.encode(), b"tracepaper page", hashlib.sha256).hexdigest()


def _cookie_name(request: web.Request) -> str:
    """Return the cookie's name, which has the port: browsers share cookies between ports."""
    return f"tracepaper-{urlsplit(f'//{request.host}').port or 80}"


def _sign_in_page() -> web.Response:
    answer = web.Response(status=401, text=_SIGN_IN, content_type="text/html")
    answer.headers["Content-Security-Policy"] = _SIGN_IN_POLICY
    return answer
