"""What a history is: a market, a configuration, and the faults that strike it, drawn from a seed.

Each kind of fault has a rate of its own, drawn from a stream of its own: a kind that is left out
changes no other. ``Spec`` is plain data, so that a failing history can be made smaller.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from tracepaper.replay.archive import Candles
from tracepaper.strategies.types.market import Category

MINUTE_MS: Final = 60_000
BEGIN_MS: Final = 1_749_945_600_000
"""2025-06-15T00:00Z: the first candle of every history."""
NEXT_MONTH_MS: Final = BEGIN_MS + 16 * 86_400_000
MOST_MONTHS_MS: Final = 170 * 86_400_000
"""A month is a file, and the judge opens ten at most."""
PAST_BARS: Final = 60
"""Bars before a history's first live bar, for REST to serve."""
SPARE_BARS: Final = 400
"""Bars after its last, for lives that end late."""
CALM: Final = 0.25
"""Share of a history, its end, in which nothing strikes."""
SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
RENAMED: Final = "ETH2USDT"
"""What the second symbol is called later, where it is renamed."""
TICKS: Final = (10, 50)
"""The tick of the first symbol, in hundredths, and what it may become."""
ADDRESS: Final = "env:HOOK"
"""Where notices go."""
VERSIONS: Final = ("0.0.1+0123456789ab", "99.0.0+ba9876543210")
"""An older and a newer version of the product."""
INTERVALS: Final = (1, 15, 60, 240, 1440)
"""Minutes of a bar."""
SMA: Final = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
EXAMPLES: Final = "tracepaper.strategies.examples"
WORLD_FAULTS: Final = (
    *("reset", "half_open", "slow", "refuse", "hang", "unresolved"),  # network
    *("wall_step", "stopped", "suspended", "busy"),  # time
)
"""Faults of the network and of time; those of the exchange are called ``exchange:NAME``."""
EXCHANGE_FAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "drop": {"kind": "delivery", "form": "drop"},
    "delay": {"kind": "delivery", "form": "delay"},
    "duplicate": {"kind": "delivery", "form": "duplicate"},
    "reorder": {"kind": "delivery", "form": "reorder"},
    "malformed": {"kind": "malformed"},
    "stall": {"kind": "stall"},
    "disconnect": {"kind": "disconnect"},
    "refuse": {"kind": "refuse"},
    "retcode_10006": {"kind": "retcode", "code": 10006},
    "http_403": {"kind": "http_status", "status": 403},
    "missing_close": {"kind": "wrong_close", "form": "missing"},
    "revised_close": {"kind": "wrong_close", "form": "revised"},
    "late_close": {"kind": "wrong_close", "form": "late"},
    "early_confirm": {"kind": "early_confirm"},
    "off_grid": {"kind": "wrong_close", "form": "off_grid"},
    "double_close": {"kind": "wrong_close", "form": "double"},
    "implausible_close": {"kind": "wrong_close", "form": "implausible"},
    "ahead_candle": {"kind": "ahead"},
    "ahead_book": {"kind": "ahead", "topic": "orderbook."},
    "ahead_ticker": {"kind": "ahead", "topic": "tickers."},
    "ahead_trade": {"kind": "ahead", "topic": "publicTrade."},
    "foreign_frame": {"kind": "wrong_frame", "form": "foreign"},
    "crossed_book": {"kind": "wrong_frame", "form": "crossed"},
    "deep_book": {"kind": "wrong_frame", "form": "deep"},
    "http_status": {"kind": "http_status"},
    "retcode": {"kind": "retcode"},
    "redirect": {"kind": "http_status", "status": 302},
    "hang": {"kind": "hang"},
    "malformed_body": {"kind": "malformed_body"},
    "lying_time": {"kind": "wrong_time"},
    "empty_page": {"kind": "wrong_page", "form": "empty"},
    "short_page": {"kind": "wrong_page", "form": "short"},
    "foreign_page": {"kind": "wrong_page", "form": "foreign"},
    "foreign_window": {"kind": "wrong_page", "form": "window"},
    "off_grid_page": {"kind": "wrong_page", "form": "off_grid"},
    "implausible_page": {"kind": "wrong_page", "form": "implausible"},
    "false_mark": {"kind": "wrong_frame", "form": "mark"},
    "mark_of_one": {"kind": "wrong_frame", "form": "mark_of_one"},
    "false_ticker": {"kind": "wrong_frame", "form": "ticker"},
    "absurd_rate": {"kind": "wrong_frame", "form": "rate"},
    "false_book": {"kind": "wrong_frame", "form": "low"},
    "absurd_settlement": {"kind": "wrong_page", "form": "settlement"},
    "hollow_close": {"kind": "wrong_close", "form": "hollow"},
    "absurd_turnover": {"kind": "wrong_close", "form": "turnover"},
}
"""Faults of the exchange that a history may have, as they are armed, by the name of a stream."""
BURST: Final = "burst"
"""Thousands of frames at once, and in half of the cases a stop amid them."""
RATED: Final = (BURST, "second", "bomb")
"""Faults that change no other's rate: a burst, a second instance on the same record, an answer or
a frame that never ends."""
TRAITS: Final = (
    *("hanging", "leaking"),  # classes that hang, and that keep what they open
    *("versions", "parity", "notices", "proxy", "filters", "renamed", "monthly"),
)
"""What a history has from its beginning to its end."""
KILL_SHARE: Final = 0.9
"""The share where nearly each life is to end in a kill."""
KILLS: Final = ("kill", "kill_in_operation", "kill_when_answered")
HOST_FAULTS: Final = (*KILLS, "short_write", "errors", "process", "terminate")
"""Faults of the machine: all but those of processes strike a life at most once each; SIGTERM may
come twice."""
BETWEEN: Final = ("backup", "restore", "edit", "newer", "rotate")
"""What an operator does between two lives."""

Section = dict[str, Any]


class Spec(msgspec.Struct, frozen=True):
    """One history. Rates are mean bars between two faults of a kind."""

    seed: int
    kind: str
    minutes: int
    bars: int
    symbols: tuple[str, ...]
    config: dict[str, Any]
    rates: dict[str, float]
    host: tuple[str, ...]  # of HOST_FAULTS
    latency_s: tuple[float, float]
    work_s: tuple[float, float]
    life_bars: float
    life_operations: int
    command_bars: float  # mean bars between two commands; 0 sends none
    between: tuple[str, ...] = ()  # of BETWEEN
    traits: tuple[str, ...] = ()  # of TRAITS
    listed_bar: int = 0
    """The bar of the history at which the second symbol first trades; 0: it always did."""
    gone_bar: int = 0
    """The bar from which on the exchange lists the second symbol no more; 0: it stays."""
    renamed_bar: int = 0
    """The bar from which on the second symbol has another name; 0: it keeps it."""
    filters_bar: int = 0
    """The bar from which on the first symbol has a coarser tick; 0: it keeps it."""
    bar_s: float = 1.0
    """Seconds of network time that a bar lasts."""
    kill_share: float = 0.35
    """The share of lives that a kill of each kind may end."""
    has_views: bool = True
    """Whether the record is made with views; the judge adds them to one without."""

    @property
    def interval_ms(self) -> int:
        """The length of a bar."""
        return self.minutes * MINUTE_MS

    @property
    def speed(self) -> float:
        """Market time over network time."""
        return self.minutes * 60 / self.bar_s

    @property
    def first_ms(self) -> int:
        """Market time of the history's beginning."""
        return BEGIN_MS + PAST_BARS * self.interval_ms + 5_000

    @property
    def calm_ms(self) -> int:
        """Market time from which on nothing strikes, so that all has to recover."""
        return self.end_ms - int(CALM * self.bars) * self.interval_ms

    def time_of(self, bar: int) -> int:
        """Return the market time of a *bar* of the history."""
        return BEGIN_MS + (PAST_BARS + bar) * self.interval_ms

    @property
    def gone_ms(self) -> float:
        """Market time from which on the exchange lists the second symbol no more."""
        bar = self.gone_bar or self.renamed_bar
        return self.time_of(bar) if bar else math.inf

    @property
    def end_ms(self) -> int:
        """Market time at which a history ends, once it was calm for a while."""
        return BEGIN_MS + (PAST_BARS + self.bars) * self.interval_ms


def configured(spec: Spec) -> Section:
    """Return the configuration of *spec* with what its traits need."""
    config = dict(spec.config)
    for name in ("hanging", "leaking"):
        if name in spec.traits:
            config["strategy"] = {"name": f"{name}_drawn:{name.capitalize()}"}
    if "parity" in spec.traits:
        config["parity"] = {"daily_at": "00:00"}
    if "notices" in spec.traits:
        config["notify"] = {"addresses": [ADDRESS], "per_minute": 30}
    if "monthly" in spec.traits:
        config["storage"] = {"rotate": "month"}
    return config


def version_of(spec: Spec, life: int) -> str:
    """Return the version of the product in a *life* of *spec*; empty: its own."""
    rng = random.Random(f"{spec.seed}:versions:{life}")
    return rng.choice(VERSIONS) if "versions" in spec.traits and rng.random() < 0.4 else ""


def candles(spec: Spec) -> list[Candles]:
    """Return the market of *spec*, one series a symbol."""
    return [_series(spec, symbol) for symbol in spec.symbols]


def _series(spec: Spec, symbol: str) -> Candles:
    rng = np.random.default_rng(random.Random(f"{spec.seed}:market:{symbol}").getrandbits(64))
    count = PAST_BARS + spec.bars + SPARE_BARS
    moves = rng.standard_t(4, count) * 0.0015 * (min(spec.minutes, 240) / 15) ** 0.5
    tick = np.full(count, TICKS[0])
    if spec.filters_bar and symbol == SYMBOLS[0]:
        tick[PAST_BARS + spec.filters_bar :] = TICKS[1]
    close = (60_000_00 * np.exp(np.cumsum(moves.clip(-0.1, 0.1)))).astype(np.int64) // tick * tick
    opened = np.concatenate(([60_000_00], close[:-1]))
    wicks = (np.abs(rng.normal(0, 0.0006, (2, count))) * close).astype(np.int64) // tick * tick
    high = np.maximum(opened, close) + wicks[0]
    low = np.minimum(opened, close) - wicks[1]
    volume = rng.integers(1_000, 900_000, count)
    times = BEGIN_MS + np.arange(count, dtype=np.int64) * spec.interval_ms
    is_new = spec.listed_bar and symbol == SYMBOLS[1]
    kept = slice(PAST_BARS + spec.listed_bar if is_new else 0, None)
    return Candles(
        "drawn", Category("linear"), symbol, spec.interval_ms, 2, 3, 2, times[kept],
        opened[kept], high[kept], low[kept], close[kept], volume[kept], None,
    )  # fmt: skip


# ---------------------------------------------------------------- kinds of configuration


def _plain(config: Section, rng: random.Random) -> None:
    strategies = (
        SMA,
        {**SMA, "fast": 5, "slow": 20, "long_only": True},
        {
            "name": f"{EXAMPLES}.rsi_reversion:RsiReversion",
            "options": {"bars": 4, "low": 40, "high": 55, "stop": 0.05},
        },
    )
    config["strategy"] = rng.choice(strategies)
    if rng.random() < 0.3:
        config["exits"] = {"stop_loss": rng.choice(("0.5%", "2%"))}


def _limits(config: Section, rng: random.Random) -> None:
    options = {"bars": rng.choice((6, 12)), "levels": 3, "spacing": 0.05, "quantity": 0.05}
    config["strategy"] = {"name": f"{EXAMPLES}.grid:Grid", "options": options}


def _margin(config: Section, rng: random.Random) -> None:
    config["account"] |= {"margin": "isolated", "leverage": rng.choice((50, 75, 100))}
    config["sizing"]["quantity"] = rng.choice(("2", "20"))


def _cross(config: Section, rng: random.Random) -> None:
    leverage = rng.choice((50, 75, 100))
    config["account"] |= {"margin": "cross", "leverage": leverage, "cash": "100000"}
    config["sizing"]["quantity"] = rng.choice(("5", "10", "20"))


def _exits(config: Section, rng: random.Random) -> None:
    returns = {"0": 0.03, "1200": 0.01}
    config["exits"] = {"stop_loss": rng.choice(("0.5%", "2%")), "minimal_roi": returns}
    if rng.random() < 0.5:
        config["exits"]["trailing"] = "1%"


def _books(config: Section, rng: random.Random) -> None:
    config["strategy"] = {"name": "books_drawn:Books"}
    config["market"] |= {"depth": rng.choice((10, 20)), "depth_every_ms": 10_000}


def _raising(config: Section, rng: random.Random) -> None:
    del rng
    config["strategy"] = {"name": "raising_drawn:Raising"}


def _model(config: Section, rng: random.Random) -> None:
    config["strategy"] = {"name": "attention"}
    config["model"] = {"class": "model_drawn:Drawn", "deadline_ms": rng.choice((300, 2_000))}
    config["gate"] |= {"horizon": 1}


def _two(config: Section, rng: random.Random) -> None:
    del config, rng


KINDS: Final[Mapping[str, Callable[[Section, random.Random], None]]] = {
    each.__name__.removeprefix("_"): each
    for each in (
        *(_plain, _limits, _margin, _cross, _exits),
        *(_books, _two, _raising, _model),
    )
}
OWN_CLASS: Final = ("plain", "margin", "cross", "exits", "two")
"""Kinds whose strategy a class may replace that hangs or leaks."""
ALWAYS_TWO: Final = ("two",)


# ---------------------------------------------------------------- the draw


def drawn(seed: int, *, bars: int = 120, kind: str = "", minutes: int = 0) -> Spec:
    """Draw the history of *seed*; *kind* and *minutes* of a bar are drawn where none is given."""
    rng = random.Random(f"{seed}:spec")
    kind = kind or _kind(seed)
    minutes = minutes or random.Random(f"{seed}:minutes").choice(INTERVALS)
    many = 2 if kind in ALWAYS_TWO else rng.choice((1, 1, 2))
    config: Section = {
        "market": {"symbols": list(SYMBOLS[:many]), "interval": _interval_name(minutes)},
        "exchange": {"ban_cooldown_s": 60.0, "requests_per_s": 20.0},
        "strategy": SMA,
        "sizing": {"mode": "fixed", "quantity": "0.5"},
        "account": {"cash": "1000000"},
        "http": {"port": 0},
        "log": {"level": "error"},
        "parity": {"daily_at": "off"},
        "gate": {"late_ms": minutes * MINUTE_MS // 2},
    }
    KINDS[kind](config, random.Random(f"{seed}:config"))
    spec = Spec(
        seed=seed,
        kind=kind,
        minutes=minutes,
        bars=bars,
        symbols=SYMBOLS[:many],
        config=config,
        rates=_rates(seed),
        host=tuple(name for name in HOST_FAULTS if random.Random(f"{seed}:{name}").random() < 0.7),
        latency_s=rng.choice(((0.001, 0.01), (0.005, 0.1), (0.001, 0.3))),
        work_s=rng.choice(((0.0001, 0.001), (0.001, 0.02), (0.005, 0.1))),
        life_bars=rng.choice((5, 20, 60)),
        life_operations=rng.choice((100, 600, 3_000)),
        command_bars=rng.choice((0.7, 1, 3, 15)),
        bar_s=rng.choice((1.0, 1.0, 4.0)),
        listed_bar=_bar(seed, "listed", bars) if many > 1 else 0,
        gone_bar=_bar(seed, "gone", bars) if many > 1 else 0,
        between=tuple(name for name in BETWEEN if random.Random(f"{seed}:{name}").random() < 0.3),
    )
    return having(
        spec, [each for each in TRAITS if random.Random(f"{seed}:{each}").random() < 0.25]
    )


def _kind(seed: int) -> str:
    """Draw a kind: one more or less changes no history of another."""
    return max(KINDS, key=lambda name: random.Random(f"{seed}:kind {name}").random())


def _rates(seed: int) -> dict[str, float]:
    """Draw which kinds of fault a history has, and how often each strikes."""
    kinds = [
        *(name for name in WORLD_FAULTS if random.Random(f"{seed}:{name}").random() < 0.4),
        *(
            name
            for name in (f"exchange:{name}" for name in EXCHANGE_FAULTS)
            if random.Random(f"{seed}:{name}").random() < 0.2
        ),
    ]
    bars = random.Random(f"{seed}:bars of a fault").choice((1.5, 5.0, 20.0))
    rates = dict.fromkeys(kinds, bars * len(kinds))
    for name in RATED:
        if random.Random(f"{seed}:{name}").random() < 0.3:
            rates[name] = bars * max(len(kinds), 4)
    return rates


def _bar(seed: int, name: str, bars: int) -> int:
    """Draw at which bar something happens to the second symbol; 0 is never."""
    rng = random.Random(f"{seed}:{name}")
    return rng.randint(1, max(1, bars // 2)) if rng.random() < 0.25 else 0


def _turn(seed: int, name: str, bars: int) -> int:
    """Draw the bar, of the first half, at which something changes."""
    return random.Random(f"{seed}:{name}:bar").randint(1, max(1, bars // 2))


def _interval_name(minutes: int) -> str:
    return "D" if minutes == 1440 else str(minutes)


def having(spec: Spec, traits: Iterable[str]) -> Spec:
    """Return *spec* with those of *traits* that fit it."""
    unfit: set[str] = set()
    if spec.kind not in OWN_CLASS:
        unfit |= {"hanging", "leaking"}
    if len(spec.symbols) == 1 or spec.listed_bar or spec.gone_bar:
        unfit |= {"renamed"}
    sleeps = "suspended" in spec.rates and spec.minutes == INTERVALS[-1]
    if not NEXT_MONTH_MS < spec.end_ms < NEXT_MONTH_MS + MOST_MONTHS_MS or sleeps:
        unfit |= {"monthly"}
    fit = tuple(name for name in traits if name not in unfit)
    turns = {
        name: _turn(spec.seed, name, spec.bars) if name in fit else 0
        for name in ("renamed", "filters")
    }
    return msgspec.structs.replace(
        spec, traits=fit, renamed_bar=turns["renamed"], filters_bar=turns["filters"]
    )


def deadly(spec: Spec) -> Spec:
    """Return *spec* with short lives, of which nearly each ends in a kill.

    What costs more than a life is left out: a daily replay, and views, whose reading is two thirds
    of what it takes to open a record.
    """
    return msgspec.structs.replace(
        spec,
        host=tuple(name for name in HOST_FAULTS if name in {*KILLS, *spec.host}),
        traits=tuple(name for name in spec.traits if name != "parity"),
        kill_share=KILL_SHARE,
        has_views=False,
        life_bars=2.0,
        life_operations=600,
        command_bars=min(spec.command_bars, 1.0),
        bar_s=1.0,
    )


def without(spec: Spec, names: Iterable[str]) -> Spec:
    """Return *spec* without faults of *names*; ``commands`` stands for those of an operator."""
    left_out = {*names}
    return msgspec.structs.replace(
        spec,
        rates={name: rate for name, rate in spec.rates.items() if name not in left_out},
        host=tuple(name for name in spec.host if name not in left_out),
        between=tuple(name for name in spec.between if name not in left_out),
        listed_bar=0 if "listed" in left_out else spec.listed_bar,
        gone_bar=0 if "gone" in left_out else spec.gone_bar,
        renamed_bar=0 if "renamed" in left_out else spec.renamed_bar,
        filters_bar=0 if "filters" in left_out else spec.filters_bar,
        traits=tuple(name for name in spec.traits if name not in left_out),
        command_bars=0.0 if "commands" in left_out else spec.command_bars,
    )


def kinds_of(spec: Spec) -> tuple[str, ...]:
    """Return the names of all that ``without`` can leave out of *spec*."""
    return (*spec.rates, *spec.host, *spec.between, *spec.traits, "commands", "listed", "gone")


def calm(spec: Spec) -> Spec:
    """Return *spec* without faults and commands."""
    return without(spec, kinds_of(spec))
