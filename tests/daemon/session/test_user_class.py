"""Faults of a user's class end in one sentence, and its id covers its sources."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import math
import sys
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import bar, instrument
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.default_warmup import Warmup
from tracepaper.daemon.session.run_row import strategy_sha256
from tracepaper.daemon.session.user_class import REASON_LONGEST, user_strategy
from tracepaper.daemon.session.user_code import class_sha256
from tracepaper.daemon.session.user_code import parsed as parsed_file
from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    OrderRequest,
    Orders,
    Percent,
    Signal,
    Volatility,
    buy,
)
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed, TracepaperError
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar

OUTLOOK = BarContext.of([bar()], instrument())
LONG = Signal(Action.LONG, "up")
DOWN = Signal(Action.FLAT, "down")
SIGNALS = [action for action in Action if action is not Action.ORDERS]


class Answers(Strategy):
    """Returns the answer in its options."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.answer = options.get("answer", LONG)

    def decide(self, context: BarContext) -> Signal:
        answer: Signal = self.answer
        return answer


def parsed(answer: object) -> Signal:
    signal = user_strategy(Answers, {"answer": answer}).decide(OUTLOOK)
    assert isinstance(signal, Signal)
    return signal


WRONG: list[object] = [
    None,
    "LONG",
    Signal("LONG", "up"),  # type: ignore[arg-type]
    Signal(Action.LONG, None),  # type: ignore[arg-type]
    Signal(Action.LONG, "\ud800"),
    Signal(Action.LONG, "x" * (REASON_LONGEST + 1)),
    Signal(Action.LONG, "up", "1"),  # type: ignore[arg-type]
    Signal(Action.LONG, "up", -0.5),
    Signal(Action.LONG, "up", stop="64000"),  # type: ignore[arg-type]
    Signal(Action.LONG, "up", stop=True),
    Signal(Action.LONG, "up", target=Percent("2")),  # type: ignore[arg-type]
    Signal(Action.LONG, "up", trailing=Volatility(None)),  # type: ignore[arg-type]
    Signal(Action.LONG, "up", until=1.5),  # type: ignore[arg-type]
    Signal(Action.LONG, "up", reenter=1),  # type: ignore[arg-type]
    Orders(buy(1), "a request alone"),  # type: ignore[arg-type]
    Orders(("buy",), "a word"),  # type: ignore[arg-type]
    Orders((buy(True),), "a bool"),
    Orders((buy(1, limit="9"),), "text"),  # type: ignore[arg-type]
    Orders((buy(1, until=1.5),), "half a time"),  # type: ignore[arg-type]
    Orders((buy(1, post_only=1),), "a number"),  # type: ignore[arg-type]
    Orders((buy(1, tag="x" * 41),), "a long tag"),
    Orders((Cancel(7),), "a number"),  # type: ignore[arg-type]
    Orders((buy(1),), 7),  # type: ignore[arg-type]
    Orders((buy(1),) * 201, "too many"),
    Signal(Action.ORDERS, "no list"),
    Signal(Action.LONG, "up", 10**400),
    Signal(Action.LONG, "up", stop=10**400),
    Signal(Action.LONG, "up", stop=Percent(10**400)),
    Signal(Action.LONG, "up", band=Decimal("NaN")),  # type: ignore[arg-type]
    Signal(Action.LONG, "up", until=10**30),
    Orders((buy(Decimal("sNaN")),), "no number"),
]


@pytest.mark.parametrize("answer", WRONG, ids=range(len(WRONG)))
def test_what_is_no_answer_stops_with_advice(answer: object) -> None:
    with pytest.raises(StrategyFailed, match=r"^Answers .*; (give|return|use) .*\.$"):
        user_strategy(Answers, {"answer": answer}).decide(OUTLOOK)


@pytest.mark.parametrize("quantity", [math.nan, -1, 0, 10**400, Decimal("1e-30"), np.float64(2)])
def test_orders_of_right_types_pass_whatever_their_numbers_are(quantity: float) -> None:
    orders = Orders((buy(quantity, limit=math.inf, tag="a"), Cancel("b")), "as it comes")
    answer = user_strategy(Answers, {"answer": orders}).decide(OUTLOOK)
    assert repr(answer).replace("np.float64(2.0)", "2.0") == repr(orders).replace(
        "np.float64(2.0)", "2.0"
    )


class Half(float):
    """A user's float, none of whose methods may be called later."""

    def __mul__(self, other: object) -> Any:
        raise AssertionError


NUMBERS = [
    *(np.float32(0.5), np.float16(0.5), np.array(0.5), Half(0.5), Fraction(1, 2)),
    *(np.float64(0.5), torch.tensor(0.5)),
]


@pytest.mark.parametrize("half", NUMBERS, ids=lambda half: type(half).__name__)
def test_numbers_of_every_library_become_plain_ones(half: Any) -> None:
    signal = parsed(Signal(Action.LONG, "up", half, stop=half, trailing=Percent(half), band=half))
    plain = (signal.strength, signal.stop, signal.trailing, signal.band)
    assert plain == (0.5, 0.5, Percent(0.5), 0.5)
    assert {type(signal.strength), type(signal.stop), type(signal.band)} == {float}
    given: dict[str, Any] = {"limit": np.float32(0.1), "until": np.int64(7)}
    orders = Orders((buy(half, **given),), "list")
    listed = user_strategy(Answers, {"answer": orders}).decide(OUTLOOK)
    assert isinstance(listed, Orders)
    (request,) = listed.requests
    assert isinstance(request, OrderRequest)
    assert [request.quantity, request.price, request.until] == [0.5, 0.1, 7]
    assert {type(request.quantity), type(request.price)} == {float}
    assert type(request.until) is int


@pytest.mark.parametrize(("strength", "due"), [(1.0000000000000002, 1.0), (-1e-17, 0.0), (1, 1.0)])
def test_a_share_that_a_rounding_moved_is_taken(strength: float, due: float) -> None:
    assert parsed(Signal(Action.LONG, "up", strength)).strength == due


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf])
def test_a_strength_that_is_not_finite_is_held(strength: float) -> None:
    signal = parsed(Signal(Action.LONG, "up", strength))
    assert (signal.action, signal.reason) == (Action.HOLD, "strength is not finite")


def test_protection_passes_as_it_is() -> None:
    given = Signal(Action.LONG, "up", 1.0, 3, Percent(2), Volatility(1.5), 5, reenter=True)
    assert parsed(given) == given
    unknown = Signal(Action.LONG, "up", stop=math.nan)  # the market can cause this
    assert repr(parsed(unknown)) == repr(unknown)


def noted(note: Any) -> Any:
    return parsed(Signal(Action.LONG, "up", note=note)).note


def test_a_note_is_kept_as_it_is_stored() -> None:
    given: dict[str, Any] = {
        "rsi": 27.3, "bars": 3, "why": "low", "low": np.float32(0.5), "least": -0.0, "yes": True,
        "no": None,
    }  # fmt: skip
    given |= {"nan": math.nan, "inf": -math.inf, "much": 10**400}
    kept = noted({name: value for name, value in given.items() if name != "no"})
    assert kept == {
        "rsi": 27.3, "bars": 3.0, "why": "low", "low": 0.5, "least": 0.0, "yes": 1.0,
        "nan": None, "inf": None, "much": None,
    }  # fmt: skip
    assert {type(value) for value in kept.values()} == {float, str, type(None)}
    assert math.copysign(1, kept["least"]) == 1
    assert noted({}) == {}


@pytest.mark.parametrize(
    "note",
    [
        {f"name_{number}": 1.0 for number in range(17)},
        {"two words": 1.0},
        {"x" * 41: 1.0},
        {"why": "x" * (REASON_LONGEST + 1)},
        {"why": "two\nlines"},
        {"one": 1j},
    ],
)
def test_a_bad_note_stops_with_advice(note: Any) -> None:
    with pytest.raises(StrategyFailed, match=r"^Answers (gave|named|noted) .*; give .*\.$"):
        noted(note)


@given(st.none() | st.integers() | st.text() | st.builds(Signal, st.sampled_from(SIGNALS),
       st.text(), st.floats()))  # fmt: skip
def test_any_answer_is_believed_or_refused_by_an_error_of_ours(answer: object) -> None:
    try:
        signal = parsed(answer)
    except TracepaperError:
        return
    assert 0 <= signal.strength <= 1
    signal.reason.encode()


class Fails(Strategy):
    """Fails in the method that its options name."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.error: BaseException = options["error"]
        if options.get("at_once"):
            raise self.error

    def observe(self, bar: Bar) -> None:
        raise self.error

    def decide(self, context: BarContext) -> Signal:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("zz"), AssertionError()])
def test_what_it_raises_is_told_with_its_line(error: Exception) -> None:
    strategy = user_strategy(Fails, {"error": error})
    where = rf"{type(error).__name__}.* at .*test_user_class\.py:\d+ for the bar [^;]+; mend it"
    with pytest.raises(StrategyFailed, match=f"Fails failed in decide with {where}"):
        strategy.decide(OUTLOOK)
    with pytest.raises(StrategyFailed, match=f"Fails failed in observe with {where}"):
        strategy.observe(bar())


@pytest.mark.parametrize("error", [SystemExit(0), CancelledError(), GeneratorExit()])
def test_a_decision_that_exits_is_a_failure_and_not_an_orderly_end(error: BaseException) -> None:
    with pytest.raises(StrategyFailed, match=f"failed in decide with {type(error).__name__}"):
        user_strategy(Fails, {"error": error}).decide(OUTLOOK)


def test_an_exit_while_bars_are_recalled_and_an_interrupt_are_no_failures() -> None:
    with pytest.raises(SystemExit):
        user_strategy(Fails, {"error": SystemExit(3)}).observe(bar())
    with pytest.raises(KeyboardInterrupt):
        user_strategy(Fails, {"error": KeyboardInterrupt()}).decide(OUTLOOK)


def test_a_constructor_that_fails_is_told_apart_from_one_that_refuses_options() -> None:
    with pytest.raises(StrategyFailed, match="Fails failed when it was made with RuntimeError"):
        user_strategy(Fails, {"error": RuntimeError("x"), "at_once": True})
    with pytest.raises(ConfigInvalid, match=r"Fails refused \[strategy\.options\] \('error' at "):
        user_strategy(Fails, {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("warmup", 0),
        ("warmup", 10**9),
        ("horizon", 0),
        ("gates", ("nonsense",)),
        ("shadows", ("evil",)),
        ("gates", frozenset({"warm", "late"})),
        ("frames", ({},)),
        ("sees_account", "yes"),
        ("reads_history", 1),
    ],
)
def test_what_it_declares_must_be_possible(field: str, value: object) -> None:
    declared = type("Declared", (Answers,), {field: value})
    with pytest.raises(ConfigInvalid, match=rf"^Declared\.{field} "):
        user_strategy(declared, {})


@pytest.mark.parametrize(
    ("declared", "field", "meant"),
    [
        ({"frames": ("1h", "1D", "1M")}, "frames", ("60", "D", "M")),
        ({"frames": ["60"]}, "frames", ("60",)),
        ({"frames": "4h"}, "frames", ("240",)),
        ({"frames": (60,)}, "frames", ("60",)),
        ({"frames": ("60",), "frames_warmup": {"1h": 20}}, "frames_warmup", {"60": 20}),
        ({"frames": ("60", "D"), "frames_warmup": 20}, "frames_warmup", {"60": 20, "D": 20}),
    ],
)
def test_the_line_that_a_wrong_frame_is_told_is_accepted(
    declared: dict[str, object], field: str, meant: object
) -> None:
    with pytest.raises(ConfigInvalid) as error:
        user_strategy(type("Declared", (Answers,), declared), {}, Warmup(9, {}))
    line = str(error.value).removesuffix(".").partition(f"write {field} = ")[2]
    assert ast.literal_eval(line) == meant
    corrected = type("Declared", (Answers,), declared | {field: ast.literal_eval(line)})
    assert user_strategy(corrected, {}, Warmup(9, {})).frames


# The id of a user's class covers its sources and nothing else.

MINE = """
import helper
from pack import inner
from tracepaper.strategies.api.strategy import Strategy

class Mine(Strategy):
    files = ("declared.csv", "pack/declared.csv")

    def decide(self, now):
        import late
        return importlib.import_module("named")
"""
FILES = {
    "mine.py": MINE,
    "helper.py": "import deep",
    "deep.py": "",
    "late.py": "",
    "named.py": "",
    "pack/__init__.py": "",
    "pack/inner.py": "from . import beside",
    "pack/beside.py": "",
    "declared.csv": "1",
    "pack/declared.csv": "1",
}
Hashed = Callable[[], str]


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashed]:
    for name, text in {**FILES, "stranger.py": "", "data.csv": "1"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    yield lambda: class_sha256(importlib.import_module("mine").Mine)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_declared_file_is_a_path_by_its_name(hashed: Hashed, tmp_path: Path) -> None:
    hashed()
    strategy = importlib.import_module("mine").Mine()
    assert strategy.files["pack/declared.csv"].read_text() == "1"
    (tmp_path / "declared.csv").unlink()
    for use in (hashed, lambda: user_strategy(type(strategy), {})):
        with pytest.raises(
            ConfigInvalid, match=r"Mine\.files names declared\.csv, but there is no"
        ):
            use()


def test_what_names_no_files_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigInvalid, match=r"files is .rates\.csv.; give a tuple of names"):

        class _Rates(Strategy):
            files = "rates.csv"


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_any_file_that_it_is_made_of_changes_the_id(
    hashed: Hashed, tmp_path: Path, name: str
) -> None:
    before = hashed()
    with (tmp_path / name).open("a") as file:
        file.write("\n# changed\n")
    assert hashed() != before


@pytest.mark.parametrize("name", ["stranger.py", "data.csv"])
def test_a_file_that_it_does_not_import_does_not_change_the_id(
    hashed: Hashed, tmp_path: Path, name: str
) -> None:
    before = hashed()
    (tmp_path / name).write_text("another")
    assert hashed() == before


def test_a_linked_file_counts_by_what_it_holds(hashed: Hashed, tmp_path: Path) -> None:
    before = hashed()
    elsewhere = tmp_path.with_name("elsewhere.py")
    (tmp_path / "helper.py").rename(elsewhere)
    (tmp_path / "helper.py").symlink_to(elsewhere)
    assert hashed() == before
    elsewhere.write_text("changed = 1")
    assert hashed() != before


def test_the_id_does_not_depend_on_where_the_folder_lies(hashed: Hashed, tmp_path: Path) -> None:
    before = hashed()
    moved = tmp_path / "moved"
    for name in FILES:
        (moved / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(moved / name)
    del sys.modules["mine"]
    sys.path[0] = str(moved)
    importlib.invalidate_caches()
    assert hashed() == before


@pytest.mark.parametrize("other", ["x + 2", "y + 1", "-x"])
def test_a_typed_class_is_told_by_its_code(other: str) -> None:
    def typed(answer: str) -> str:
        document: dict[str, type] = {}
        text = f"class Mine:\n def decide(self, x, y):\n  return {answer}"
        exec(text, {"__name__": "typed"}, document)
        return class_sha256(document["Mine"])

    assert typed("x + 1") == typed("x + 1")
    assert typed("x + 1") != typed(other)


def test_a_strategy_of_ours_needs_no_id() -> None:
    assert strategy_sha256(load(None, {"strategy": {"name": "persistence"}})) == ""


class Frames(Strategy):
    """Has the ``decide`` of another program."""

    def decide(self, dataframe: object, metadata: object) -> Signal:  # type: ignore[override]
        return LONG


class Blind(Strategy):
    """Reads the account without declaring it."""

    def decide(self, context: BarContext) -> Signal:
        return LONG if context.account.equity else DOWN  # type: ignore[union-attr]


class UnrequestedForecast(Strategy):
    """Reads a forecast without declaring it."""

    def decide(self, context: BarContext) -> Signal:
        return LONG if context.forecast.horizons else DOWN  # type: ignore[union-attr]


def test_a_decide_that_takes_no_context_is_refused() -> None:
    message = r"Frames has decide\(self, .*metadata.*; let it be decide\(self, context\)\."
    with pytest.raises(ConfigInvalid, match=message):
        user_strategy(Frames, {})


@pytest.mark.parametrize(
    ("made_of", "message"),
    [
        (
            Blind,
            "context.account was read: it is None unless the class declares sees_account = True.",
        ),
        (
            UnrequestedForecast,
            "context.forecast was read: it is None unless .* needs_forecast = True",
        ),
    ],
)
def test_what_was_not_asked_for_is_named(made_of: type[Strategy], message: str) -> None:
    with pytest.raises(StrategyFailed, match=message):
        user_strategy(made_of, {}).decide(OUTLOOK)


def test_sources_are_parsed_in_two_threads() -> None:
    """Python 3.11 fails where a callback of its garbage collector lets the other thread go on."""

    def switches(*_: object) -> None:
        sum(range(99))

    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(switches)
    try:
        gc.set_threshold(500)
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(2) as pool:
            trees = [*pool.map(parsed_file, [Path(inspect.__file__)] * 6)]
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
        gc.callbacks.remove(switches)
    assert len(trees) == 6
