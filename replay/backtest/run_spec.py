"""The inputs of a run, declared once: ``MarketSpec`` and ``RunSpec``.

Each field defines the option of every command that takes it, the argument of ``backtest`` and
``sweep``, and the error of commands that would ignore it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import UTC, date, datetime
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin

import typer

from tracepaper.daemon.commands.options import (
    ColumnsOption,
    ConfigOption,
    DepthOption,
    FromOption,
    SetOption,
    StrategyOption,
    ToOption,
    settings_with,
)
from tracepaper.daemon.session.user_code import forget_outdated
from tracepaper.storage.paths import path_of
from tracepaper.strategies.errors import ConfigInvalid, shown

if TYPE_CHECKING:
    from tracepaper.daemon.config.loading import Given, Sections
    from tracepaper.replay.archive import FundingRates
    from tracepaper.replay.archive.books import RecordedDepth
    from tracepaper.replay.archive.read import CandleInput


class Consumer(Flag):
    """Commands and functions that take a field."""

    REPLAY = auto()
    SWEEP = auto()
    LOOKAHEAD = auto()
    RECURSIVE = auto()
    BACKTEST = auto()
    PYTHON_SWEEP = auto()
    RESUME = auto()
    RECORDED = auto()  # --data FILE.db#RUN


CHECKS: Final = Consumer.LOOKAHEAD | Consumer.RECURSIVE
PYTHON: Final = Consumer.BACKTEST | Consumer.PYTHON_SWEEP
RUNS: Final = Consumer.REPLAY | Consumer.SWEEP | Consumer.RESUME
ALL: Final = RUNS | CHECKS | PYTHON


def paths_of(value: object, name: str) -> tuple[Path, ...]:
    """Return the argument *name*, a path or a list of them; raise ``ConfigInvalid`` for others."""
    values: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    paths = tuple(path_of(path) for path in values if isinstance(path, (str, Path)))
    if len(paths) < len(values):
        raise ConfigInvalid(
            f"{name} is {shown(value)}; give the path of a file, or a list of them."
        )
    return paths


def inputs_of(value: object, name: str) -> tuple[CandleInput, ...]:
    """Return the argument *name*, the data of ``backtest``; raise ``ConfigInvalid`` for others."""
    from tracepaper.replay.archive.read import each_input

    inputs = () if value is None else tuple(each_input(value))
    if not inputs and name == "data":
        raise ConfigInvalid("There are no data; give a path, a frame, or several.")
    for item in inputs:
        if isinstance(item, str) and names_a_run(item):
            raise ConfigInvalid(
                f"{item} is a run, which is replayed with its own strategy; use `tracepaper replay "
                f"--data {item}`."
            )
    return inputs


def columns_of(value: object, _name: str) -> tuple[str, ...]:
    """Return a dictionary of columns as ``--columns`` takes it; None leaves a field out."""
    if value is None or isinstance(value, (list, tuple)):
        return tuple(map(str, value or ()))
    if not isinstance(value, Mapping):
        raise ConfigInvalid(
            f'columns is {shown(value)}; give a dictionary such as {{"close": "Price"}}, with None '
            "for a field that is left out."
        )
    return tuple(f"{name}={'' if column is None else column}" for name, column in value.items())


def moment(value: Any, _name: str) -> str | None:  # noqa: ANN401 - a user's
    """Return *value* as a time of the command line; without a zone it is UTC."""
    if value is None:
        return None
    from tracepaper.replay.archive.columns import instant

    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return str(round(moment.timestamp() * 1000))
    return str(instant(value.isoformat() if isinstance(value, date) else str(value)))


def _with_named_classes(keys: object) -> Any:  # noqa: ANN401 - a section, or what is none
    """Return the *keys* of a section, with ``module:Class`` in place of a class."""
    if not isinstance(keys, Mapping):
        return keys
    return {
        key: f"{value.__module__}:{value.__name__}" if isinstance(value, type) else value
        for key, value in keys.items()
    }


def configured(value: object, name: str) -> Path | Sections | None:
    """Return the argument *name*, a file or sections; raise ``ConfigInvalid`` for others."""
    if isinstance(value, str):
        return path_of(value)
    if isinstance(value, Mapping):
        return {section: _with_named_classes(keys) for section, keys in value.items()}
    if value is None or isinstance(value, Path):
        return value
    usual = '{"training": {"steps": 800}}' if name == "recipe" else '{"account": {"cash": "10000"}}'
    raise ConfigInvalid(
        f"{name} is {shown(value)}; give a TOML file, or a dictionary of sections such as {usual}."
    )


def option(
    kind: object,
    consumers: Consumer,
    convert: Callable[[Any, str], object] | None = None,
    *,
    argument: str = "",
    default: object = None,
) -> Any:  # noqa: ANN401 - a field of any type
    """Return a field of a spec.

    *kind* is the option's type, annotated with its ``typer.Option``. *convert* maps the argument of
    a Python call to the field's value; the argument is named *argument*, by default as the field.
    """
    if any(get_origin(part) is list for part in get_args(get_args(kind)[0])):
        default = ()
    declared = {"kind": kind, "consumers": consumers, "convert": convert, "argument": argument}
    return field(default=default, metadata=declared)


def _text(flag: str, metavar: str | None, text: str) -> object:
    return Annotated[str | None, typer.Option(flag, metavar=metavar, help=text)]


def _texts(flag: str, text: str) -> object:
    return Annotated[list[str] | None, typer.Option(flag, metavar="PATH", help=text)]


def _files(flag: str, text: str) -> object:
    return Annotated[list[Path] | None, typer.Option(flag, metavar="FILE", help=text)]


@dataclass(frozen=True, kw_only=True)
class MarketSpec:
    """The market data of a run: names of files, or their contents."""

    candles: tuple[CandleInput, ...] = option(
        _texts("--data", "Candles: PATH or SYMBOL=PATH; repeat."),
        ALL | Consumer.RECORDED,
        inputs_of,
        argument="data",
    )
    category: str | None = option(
        _text("--category", None, "linear or spot, if the file name lacks it."),
        Consumer.REPLAY | Consumer.RESUME,
    )
    columns: tuple[str, ...] = option(ColumnsOption, ALL, columns_of)
    funding: tuple[Path | FundingRates, ...] = option(
        _files("--funding", "Settled funding rates, CSV; repeat."), RUNS | PYTHON, paths_of
    )
    frames: tuple[CandleInput, ...] = option(
        _texts("--frame-data", "Candles of a higher timeframe that begin before the data; repeat."),
        ALL,
        inputs_of,
        argument="frame_data",
    )
    depth: tuple[Path | RecordedDepth, ...] = option(DepthOption, ALL, paths_of)


@dataclass(frozen=True, kw_only=True)
class RunSpec(MarketSpec):
    """The inputs of a run; *overrides* are configuration keys with the highest precedence."""

    start: str | None = option(FromOption, RUNS | PYTHON, moment)
    end: str | None = option(ToOption, RUNS | PYTHON, moment)
    config: Path | Sections | None = option(  # noqa: RUF009 - a field
        ConfigOption, ALL, configured
    )
    settings: tuple[str, ...] = option(SetOption, (ALL & ~Consumer.RESUME) & ~PYTHON)
    strategy: str | None = option(
        StrategyOption,
        Consumer.REPLAY | Consumer.SWEEP | CHECKS,
    )
    resume: str | None = option(
        _text("--resume", "RUN", "Continue an interrupted replay."),
        Consumer.REPLAY | Consumer.RESUME,
    )
    mode: str = option(
        Annotated[
            str,
            typer.Option("--mode", help="How the model reads the bars: scan (one pass) or step."),
        ],
        Consumer.REPLAY | Consumer.RESUME | CHECKS,
        default="scan",
    )
    database: Path | None = option(  # noqa: RUF009 - a field
        Annotated[
            Path | None,
            typer.Option(
                "--db", metavar="FILE", help="The database; by default a new file, replay-TIME.db."
            ),
        ],
        Consumer.REPLAY | Consumer.RESUME | Consumer.RECORDED | Consumer.BACKTEST,
        lambda value, _name: None if value is None else path_of(str(value)),
        argument="db",
    )
    overrides: Sections = field(default_factory=dict)
    caller: str = "the command line"  # names the source of *overrides* in errors
    warnings: tuple[str, ...] = ()

    @property
    def given(self) -> Given:
        """The configuration file with ``--set`` and ``--strategy`` applied."""
        from tracepaper.daemon.config.loading import with_settings

        return with_settings(self.config, settings_with(self.settings, self.strategy))

    @property
    def sections(self) -> Sections:
        """The overrides, with the requested category."""
        if self.category is None:
            return self.overrides
        market = {**self.overrides.get("market", {}), "category": self.category}
        return {**self.overrides, "market": market}

    @property
    def from_ms(self) -> int | None:
        """The start of the period, in UTC milliseconds."""
        return _time(self.start)

    @property
    def until_ms(self) -> int | None:
        """The end of the period, excluded, in UTC milliseconds."""
        return _time(self.end)


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    from tracepaper.replay.archive.columns import instant

    return instant(text)


def names_a_run(item: str) -> bool:
    """Return whether *item* is ``FILE.db#RUN``; a path may contain a ``#`` too."""
    file, mark, _ = item.rpartition("#")
    return bool(mark) and not Path(item).exists() and ("=" not in file or Path(file).exists())


# ---------------------------------------------------------------- which consumer takes which field


def _options(consumers: Consumer) -> list[Field[Any]]:
    """Return the fields declared as options of any of *consumers*."""
    declared = (option for option in fields(RunSpec) if option.metadata)
    return [option for option in declared if option.metadata["consumers"] & consumers]


def _flag(option: Field[Any]) -> str:
    """Return the long name of the option, which typer stores as the default."""
    return str(get_args(option.metadata["kind"])[1].default)


def python_arguments(consumer: Consumer) -> dict[str, Field[Any]]:
    """Return the fields that a Python call takes, by the names of its arguments."""
    return {option.metadata["argument"] or option.name: option for option in _options(consumer)}


def spec_of(consumer: Consumer, given: Mapping[str, object]) -> RunSpec:
    """Return the spec of a Python call with the arguments *given*.

    Raises ``ConfigInvalid`` that names an invalid argument.
    """
    forget_outdated()
    taken = python_arguments(consumer)
    return RunSpec(
        **{
            option.name: option.metadata["convert"](given[name], name)
            for name, option in taken.items()
        }
    )


def flags_of(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """Yield each option of ``replay`` that *spec* sets, but for candles, with its value."""
    for option in _options(Consumer.REPLAY):
        value = getattr(spec, option.name)
        if (
            option.name not in {"candles", "config", "settings", "strategy"}
            and value != option.default
        ):
            for each in value if isinstance(value, tuple) else (value,):
                yield _flag(option), str(each)


def reject_unused(spec: RunSpec, consumer: Consumer, subject: str) -> None:
    """Reject options that *consumer* would ignore; *subject* begins the sentence."""
    for option in _options(~consumer):
        if (
            not option.metadata["consumers"] & consumer
            and getattr(spec, option.name) != option.default
        ):
            raise ConfigInvalid(f"{subject}; leave {_flag(option)} out.")


# ---------------------------------------------------------------- commands


def _parameters(consumer: Consumer) -> Iterator[inspect.Parameter]:
    for option in _options(consumer):
        default = None if option.default == () else option.default
        yield _parameter(option.name, option.metadata["kind"], default)


def _parameter(name: str, annotation: object, default: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def command(consumer: Consumer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a function of a ``spec`` and further options into a command.

    The options of the spec take the place of its ``spec`` parameter.
    """

    def of(work: Callable[..., None]) -> Callable[..., None]:
        argument = typer.Argument(metavar="[PATH]...", help="Candles, as with --data.")
        parameters = [_parameter("files", Annotated[list[str] | None, argument], None)]
        for parameter in inspect.signature(work, eval_str=True).parameters.values():
            if parameter.name == "spec":
                parameters += _parameters(consumer)
            else:
                parameters.append(
                    _parameter(parameter.name, parameter.annotation, parameter.default)
                )
        names = [option.name for option in _options(consumer)]
        fields = RunSpec.__dataclass_fields__

        def run(files: Sequence[str] | None = None, **given: Any) -> None:  # noqa: ANN401 - options
            values: dict[str, Any] = {name: given.pop(name) for name in names}
            values = {
                name: tuple(value or ()) if fields[name].default == () else value
                for name, value in values.items()
            }
            values["candles"] = (*(files or ()), *values["candles"])
            if not values["candles"]:
                raise ConfigInvalid(
                    f"Give candles: tracepaper {work.__name__} PATH, or --data PATH for each file."
                )
            work(spec=RunSpec(**values), **given)

        run.__name__, run.__doc__, run.__module__ = work.__name__, work.__doc__, work.__module__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010 - typer reads it
        return run

    return of
