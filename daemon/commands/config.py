"""``tracepaper config init|check|show``: write, check and print the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import ConfigOption, JsonOption, print_json
from tracepaper.strategies.errors import ConfigInvalid

app = typer.Typer(help="Write, check and print the configuration.")


@app.command()
def init(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to; by default tracepaper.toml.")
    ] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a configuration in which every key is documented."""
    from tracepaper.daemon.config.loading import DEFAULT_FILE
    from tracepaper.daemon.config.text import example

    path = file or Path(DEFAULT_FILE)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as target:
            target.write(example())
    except FileExistsError:
        raise ConfigInvalid(f"{path} exists; name another file or add --force.") from None
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be written ({error.strerror}); name another place."
        ) from None
    if json:
        print_json({"file": str(path)})
    else:
        typer.echo(f"Wrote {path}; `tracepaper run -c {path}` uses it.")


@app.command()
def check(config: ConfigOption = None, *, json: JsonOption = False) -> None:
    """Build all that a run is built of, without the network, and say whether it can start."""
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.session.preflight import preflight, refuse_class_that_exits

    loaded = load(config)
    refuse_class_that_exits(loaded)
    preflight(loaded, loaded.storage.path)
    if json:
        print_json({"valid": True, "config_sha256": loaded.sha256()})
    else:
        market, strategy = loaded.market, loaded.strategy
        typer.echo(
            f"The configuration can be used: {strategy.name} on {', '.join(market.symbols)} "
            f"({market.category}, interval {market.interval}), hash {loaded.sha256()[:12]}."
        )


@app.command()
def show(config: ConfigOption = None, *, json: JsonOption = False) -> None:
    """Print the configuration as it will be used, defaults and environment included."""
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.config.text import render

    loaded = load(config)
    if json:
        print_json({**loaded.document(), "config_sha256": loaded.sha256()})
    else:
        typer.echo(render(loaded), nl=False)
