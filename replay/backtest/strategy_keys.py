"""Converts the strategy of a Python call to configuration keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tracepaper.daemon.config.loading import Given, load
from tracepaper.daemon.config.values import MODEL_INPUTS
from tracepaper.daemon.session.user_class import is_importable
from tracepaper.daemon.session.user_code import has_source, is_outdated
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import ConfigInvalid, shown

NOT_IMPORTABLE: Final = (
    "no other process can import the class {}: to verify the run there, or for lookahead, put the "
    "class into its own module"
)
NO_SOURCE: Final = (
    "Python keeps no source of the class {}, so its id is that of its compiled code, which "
    "another Python compiles otherwise; put it into a file"
)


def strategy_name(strategy: object) -> str | None:
    """Return the name of a strategy given as text, or None; else raise ``ConfigInvalid``."""
    if strategy is None or isinstance(strategy, str):
        return strategy
    raise ConfigInvalid(
        f"strategy is {shown(strategy)}; give a name, module:Class, or the class itself, and its "
        "options as params."
    )


def check_current(cls: type) -> None:
    """Raise ``ConfigInvalid`` if the file of *cls* changed after Python imported *cls* from it."""
    if is_outdated(cls):
        raise ConfigInvalid(
            f"The file of {cls.__name__}, or one that it imports, changed after its import; "
            f"import it again: from {cls.__module__} import {cls.__name__}."
        )


def has_options(name: str) -> bool:
    """Return whether the params of strategy *name* belong into its ``options`` table."""
    return ":" in name or MODEL_INPUTS.get(name) in (DataSource.CLOSES, DataSource.ORDER_BOOKS)


def strategy_keys(name: str, params: Mapping[str, Any] | None, config: Given) -> dict[str, Any]:
    """Return the keys of ``[strategy]`` for *name*, with *params* over the configured options."""
    if params is not None and not isinstance(params, Mapping):
        raise ConfigInvalid(f"params is {shown(params)}; give a dictionary of options.")
    options = plain_values(dict(params or {}), "params")
    if not has_options(name):
        return {**options, "name": name}
    if isinstance(config, Mapping):  # without a name its keys are of the one that is called
        section = dict(config.get("strategy", {}))
        configured, before = section.get("name", name), section.get("options", {})
    else:
        strategy = load(config).strategy
        configured, before = strategy.name, strategy.options
    if configured == name:
        options = {**before, **options}
    return {"name": name, "options": options}


def plain_values(value: dict[str, Any], argument: str) -> dict[str, Any]:
    """Return *value* in plain JSON types; *argument* names it in errors."""

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


def process_warnings(classes: Sequence[type]) -> tuple[str, ...]:
    """Return warnings about *classes* that other processes cannot import."""
    return tuple(
        form.format(strategy.__name__)
        for strategy in classes
        if not is_importable(strategy)
        for form in ((NOT_IMPORTABLE,) if has_source(strategy) else (NOT_IMPORTABLE, NO_SOURCE))
    )
