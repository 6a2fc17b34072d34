"""``tracepaper ui``: the page over recorded databases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import ConfigOption, database_path
from tracepaper.strategies.errors import ConfigInvalid

LOOPBACK = "127.0.0.1"


def ui(
    *,
    db: Annotated[
        list[Path] | None,
        typer.Option(
            "--db",
            metavar="FILE",
            help="A database, or a sweep's file; repeat. By default the configuration's.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="Port on loopback; 0 picks one.")
    ] = 0,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
    link: Annotated[
        bool,
        typer.Option("--link", help="Print the link of a daemon's http.page, with its token."),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Show recorded runs in the browser: what was decided, refused, and why; read-only."""
    if link:
        for line in links(config):
            typer.echo(line)
        return
    import asyncio

    from tracepaper.replay.page.server import serve_until_ended
    from tracepaper.storage.database.reader import Reader
    from tracepaper.storage.sweeps import is_sweep

    def say(url: str) -> None:
        typer.echo(f"The page is {url}/ (Ctrl-C ends it).")
        if open_page:
            open_in_browser(url)

    paths = db or [database_path(None, config)]
    if len(paths) == 1 and not is_sweep(paths[0]):
        with Reader.open(paths[0]) as reader:  # raises its error before the page is served
            reader.find("last")
    asyncio.run(serve_until_ended(paths, host=LOOPBACK, port=port, listening_at=say))


def links(config: Path | None) -> list[str]:
    """Return the page's address for each token of [http], with the label if there are several.

    The token is in the fragment of the address, which browsers do not send.
    """
    from urllib.parse import quote

    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.config.values import host_and_port
    from tracepaper.daemon.http.access import tokens_of

    section = load(config).http
    if section.page is None:
        raise ConfigInvalid(
            'No page is served beyond loopback; set [http] page = "0.0.0.0:9188" and tokens.'
        )
    _, port = host_and_port(section.page)
    if int(port) == 0:
        raise ConfigInvalid("[http] page picks its port at each start; name one to have a link.")
    tokens = tokens_of(section)
    base = f"http://{section.hosts[0]}:{port}/#token="
    return [
        f"{base}{quote(token, safe='')}" if len(tokens) == 1 else f"{label}: {base}{quote(token)}"
        for label, token in tokens.items()
    ]


def open_in_browser(url: str) -> None:
    """Open the page of the server at *url*."""
    import webbrowser

    webbrowser.open(f"{url}/")
