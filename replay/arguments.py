"""Arguments of ``backtest`` and ``sweep``, as the request of a run takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

from tracepaper.daemon.config.loading import (
    NOTHING,
    Given,
    Sections,
    WithSettings,
    load,
    load_with_origins,
)
from tracepaper.daemon.config.values import ASKS, STOCK
from tracepaper.daemon.session.user_class import is_importable, known_class
from tracepaper.daemon.session.user_code import has_source
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.read import candles_of_frame, is_frame
from tracepaper.replay.backtest.build import sessions_of
from tracepaper.replay.backtest.request import names_a_run
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.types.market import Category

NOT_IMPORTABLE: Final = (
    "no other process can import the class {}: to verify this run there, or to look ahead, put it "
    "into a module of its own"
)
NO_SOURCE: Final = (
    "Python keeps no source of the class {}, so its id is that of its compiled code, which "
    "another Python compiles otherwise; put it into a file"
)


def configured(config: str | Given) -> Given:
    """Return *config* as a path or sections; raise ``ConfigInvalid`` where it is neither."""
    if isinstance(config, str):
        return Path(config)
    if config is None or isinstance(config, (Path, Mapping, WithSettings)):
        return config
    raise ConfigInvalid(
        f"config is {shown(config)}; give a TOML file, or a dictionary of sections such as "
        '{"account": {"cash": "10000"}}.'
    )


def strategy_name(strategy: object) -> str | None:
    """Return the name of a strategy that is no class; raise ``ConfigInvalid`` where it is none."""
    if strategy is None or isinstance(strategy, str):
        return strategy
    raise ConfigInvalid(
        f"strategy is {shown(strategy)}; give a name, module:Class, or the class itself, and its "
        "options as params."
    )


def paths_of(value: object, argument: str) -> tuple[Path, ...]:
    """Return one path or several; raise ``ConfigInvalid``, naming the *argument*, for no path."""
    values: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    paths = tuple(Path(path) for path in values if isinstance(path, (str, Path)))
    if len(paths) < len(values):
        raise ConfigInvalid(
            f"{argument} is {shown(value)}; give the path of a file, or a list of them."
        )
    return paths


def strategy_keys(name: str, params: Mapping[str, Any] | None, config: Given) -> dict[str, Any]:
    """Return the keys of ``[strategy]`` that mean *name* with *params* over the configured ones."""
    if params is not None and not isinstance(params, Mapping):
        raise ConfigInvalid(f"params is {shown(params)}; give a dictionary of options.")
    options = plain_values(dict(params or {}), "params")
    has_options = ":" in name or ASKS.get(name) in (DataSource.CLOSES, DataSource.ORDER_BOOKS)
    if not has_options:
        return {**options, "name": name}
    configured = load(config).strategy
    if configured.name == name:
        options = {**configured.options, **options}
    return {"name": name, "options": options}


def named_strategies(
    strategies: Mapping[str, Mapping[str, Any]], known: ExitStack
) -> tuple[dict[str, Any], tuple[type, ...]]:
    """Return the section ``[strategies]`` that *strategies* mean, and the classes in it.

    A ``name`` may be a class, which is *known* by its name until that closes.
    """
    if not isinstance(strategies, Mapping) or not all(
        isinstance(keys, Mapping) for label, keys in strategies.items() if label != "reset"
    ):
        raise ConfigInvalid(
            f"strategies is {shown(strategies)}; give the keys of each [strategies.NAME], such as "
            '{"calm": {"share": "0.5", "name": "trend"}, "quick": {"share": "0.5", "name": Own}}.'
        )
    section: dict[str, Any] = {}
    classes = []
    for label, keys in strategies.items():
        if label == "reset":
            section[label] = keys
            continue
        name = keys.get("name")
        if isinstance(name, type):
            classes.append(name)
            name = known.enter_context(known_class(name))
        own = dict(keys) if name is None else {**keys, "name": name}
        section[label] = plain_values(own, f"strategies[{label!r}]")
    return section, tuple(dict.fromkeys(classes))


def plain_values(value: dict[str, Any], argument: str) -> dict[str, Any]:
    """Return *value* as it is stored, in JSON; *argument* names it in errors."""

    def from_numpy(other: object) -> object:
        is_number = getattr(other, "ndim", None) == 0
        convert = getattr(other, "item" if is_number else "tolist", None)
        if convert is None:
            raise TypeError(f"{shown(other)} cannot be stored")
        return convert()

    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, default=from_numpy, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigInvalid(
            f"{argument}: {error}; give finite numbers, texts, lists and dictionaries of them."
        ) from None
    return plain


def columns_of(value: object) -> tuple[str, ...]:
    """Return *value*, a field's column by the field, as ``--columns`` takes it.

    None leaves a field out. Raises ``ConfigInvalid`` where it is no such dictionary.
    """
    if value is None or (isinstance(value, tuple) and not value):
        return ()
    if not isinstance(value, Mapping):
        raise ConfigInvalid(
            f'columns is {shown(value)}; give a dictionary such as {{"close": "Price"}}, with None '
            "for a field that is left out."
        )
    return tuple(f"{field}={'' if name is None else name}" for field, name in value.items())


def data_of(
    data: object, config: Given, overrides: Sections = NOTHING, columns: Sequence[str] = ()
) -> tuple[str | Candles, ...]:
    """Return *data* as paths and candles; raise ``ConfigInvalid`` where there are none.

    *columns* are read from frames here, and from paths by whoever reads these.
    """
    items = tuple(_data(data, None, config, overrides, columns))
    if not items:
        raise ConfigInvalid("There are no data; give a path, a frame, or several.")
    for item in items:
        if isinstance(item, str) and names_a_run(item):
            raise ConfigInvalid(
                f"{item} is a run, which is replayed with its own strategy; use `tracepaper replay "
                f"--data {item}`."
            )
    return items


def _data(
    data: Any,  # noqa: ANN401 - whatever users hand over
    symbol: str | None,
    config: Given,
    overrides: Sections,
    columns: Sequence[str],
) -> Iterator[str | Candles]:
    if isinstance(data, (str, Path)):
        yield str(data) if symbol is None else f"{symbol}={data}"
    elif isinstance(data, Candles):
        if columns:
            raise ConfigInvalid(f"{data.path} is read already; leave columns out.")
        yield data
    elif is_frame(data):
        market = load(config, overrides).market
        yield candles_of_frame(
            data,
            symbol=symbol or _configured_symbol(config, overrides),
            category=Category.STOCK if market.asset == STOCK else Category.LINEAR,
            columns=columns,
            sessions_for=sessions_of(market),
        )
    elif isinstance(data, Mapping):
        for name, item in data.items():
            yield from _data(item, str(name), config, overrides, columns)
    elif isinstance(data, Sequence):
        for item in data:
            yield from _data(item, symbol, config, overrides, columns)
    else:
        raise ConfigInvalid(
            f"data is {shown(data)}; give a path, a frame, a dictionary of columns, or several."
        )


def _configured_symbol(config: Given, overrides: Sections) -> str | None:
    """Return the configured symbol; None where the default applies, or several are configured."""
    loaded, origins = load_with_origins(config, overrides)
    symbols = loaded.market.symbols
    return symbols[0] if ("market", "symbols") in origins and len(symbols) == 1 else None


def moment_of(value: str | float | date | None, argument: str) -> str | None:
    """Return *value* as the text of a time on the command line; without a zone it is UTC."""
    if value is None:
        return None
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return str(round(moment.timestamp() * 1000))
    try:
        return str(instant(value.isoformat() if isinstance(value, date) else str(value)))
    except ConfigInvalid:
        raise ConfigInvalid(
            f"{argument} is {shown(value)}; give an ISO time such as 2025-06-01, UTC milliseconds "
            "or a date."
        ) from None


def process_warnings(classes: Sequence[type]) -> tuple[str, ...]:
    """Return the run's warnings of *classes* that only this process knows."""
    return tuple(
        form.format(one.__name__)
        for one in classes
        if not is_importable(one)
        for form in ((NOT_IMPORTABLE,) if has_source(one) else (NOT_IMPORTABLE, NO_SOURCE))
    )
