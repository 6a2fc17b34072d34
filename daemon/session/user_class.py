"""A user's own strategy class: found, made and called under guard, and hashed by its sources.

The rules are docs/strategies.md, U1 to U6, and of the hash docs/identity.md, I15.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Final

from tracepaper.daemon.session import outside
from tracepaper.daemon.session.outside import INSTALLED, SUFFIXES
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed, TracepaperError
from tracepaper.strategies.gates import GATES, gate_order
from tracepaper.strategies.strategy import Outlook, Strategy
from tracepaper.strategies.types import Action, Bar, Signal

WARMUP_MOST: Final = 100_000
REASON_LONGEST: Final = 200
"""Characters of a reason; it is stored with the decision and shown in one line."""
TWINS: Final = frozenset({"ungated"})

_UNMEASURED: Final = Signal(Action.HOLD, "strength is not finite")


def user_class(name: str) -> type[Strategy]:
    """Return the class that ``module:Class`` names; raise ``ConfigInvalid`` where it is none.

    Its module is looked for where Python looks, beside the configuration file and in the working
    folder, in this order.
    """
    module_name, _, class_name = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        with _ForeignCode(name, "when it was imported"):
            found = getattr(importlib.import_module(module_name), class_name)
            if isinstance(found, type):
                outside.belongs(name, own_folder(found))
    except StrategyFailed as error:
        if not isinstance(error.__cause__, (ImportError, AttributeError)):
            raise
        raise ConfigInvalid(
            f"strategy.name '{name}' cannot be imported ({error.__cause__}); put its file "
            "beside the configuration, or its folder on PYTHONPATH."
        ) from error
    except SystemExit as error:
        # Else a check would end silently, as if it held.
        raise StrategyFailed(
            f"{module_name} exits while it is imported; put what it runs under "
            'if __name__ == "__main__".'
        ) from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ConfigInvalid(
            f"strategy.name '{name}' is no tracepaper.strategies.strategy.Strategy; derive from it."
        )
    return found


def user_strategy(
    made_of: type[Strategy], options: dict[str, object], *, known_as: str = ""
) -> Strategy:
    """Return an object of the user's class, guarded; its constructor takes *options*.

    *known_as* is the name by which the configuration calls it: what it opens is kept under that.

    Raises ``ConfigInvalid`` where it refuses them or declares what cannot be, and
    ``StrategyFailed`` where it fails otherwise.
    """
    try:
        with _ForeignCode(made_of.__name__, "when it was made", known_as):
            strategy = made_of(options)  # type: ignore[call-arg]
    except StrategyFailed as error:
        if not isinstance(error.__cause__, (TypeError, ValueError, KeyError)):
            raise
        raise ConfigInvalid(
            f"{made_of.__name__} refused [strategy.options] ({error.__cause__}); correct them, and "
            "let its __init__ take them as one dictionary."
        ) from error
    with outside.AttributedTo(known_as):
        _check(strategy)
        return _Guarded(strategy, known_as)


class _Guarded(Strategy):
    """Calls the user's strategy and checks each answer before it is used."""

    def __init__(self, strategy: Strategy, known_as: str) -> None:
        self._strategy = strategy
        self._name = type(strategy).__name__
        self._observing = _ForeignCode(self._name, "in observe", known_as)
        self._deciding = _ForeignCode(self._name, "in decide", known_as)
        self.gates = frozenset(strategy.gates)
        self.warmup = strategy.warmup
        self.horizon = strategy.horizon
        self.needs_forecast = strategy.needs_forecast
        self.twins = tuple(strategy.twins)

    def observe(self, bar: Bar) -> None:
        with self._observing:
            self._strategy.observe(bar)

    def decide(self, outlook: Outlook) -> Signal:
        with self._deciding:
            signal = self._strategy.decide(outlook)
        if type(signal) is not Signal or not isinstance(signal.action, Action):
            raise StrategyFailed(
                f"{self._name} answered {_short(signal)} in decide; return a Signal with an Action."
            )
        return self._believed(signal)

    def _believed(self, signal: Signal) -> Signal:
        reason, strength = signal.reason, signal.strength
        if type(reason) is not str or len(reason) > REASON_LONGEST or not reason.isprintable():
            raise StrategyFailed(
                f"{self._name} gave the reason {_short(reason)}; give one line of at most "
                f"{REASON_LONGEST} printable characters."
            )
        if not isinstance(strength, (int, float)):
            raise StrategyFailed(
                f"{self._name} gave the strength {_short(strength)}; give a number from 0 to 1."
            )
        if not math.isfinite(strength):
            # The market can cause it (a division by no volatility), so it is held, not fatal.
            return _UNMEASURED
        if not 0 <= strength <= 1:
            raise StrategyFailed(
                f"{self._name} gave the strength {strength:g}; give a number from 0 to 1."
            )
        return signal


class _ForeignCode:
    """Turns whatever a user's code raises into ``StrategyFailed``, with file and line.

    Errors of tracepaper pass, and so do exits, which are no errors.
    """

    def __init__(self, name: str, doing: str, known_as: str = "") -> None:
        self._name = name
        self._doing = doing
        self._watched = outside.AttributedTo(known_as or name)

    def __enter__(self) -> None:
        """Let the user's code begin."""
        self._watched.__enter__()

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watched.__exit__()
        if not isinstance(error, Exception) or isinstance(error, TracepaperError):
            return
        frames = traceback.extract_tb(trace)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise StrategyFailed(
            f"{self._name} failed {self._doing} with {type(error).__name__}: "
            f"{_short(str(error), quoted=False)}{where}; mend it and start again."
        ) from error


def _check(strategy: Strategy) -> None:
    """Refuse declarations that the engine could not keep."""
    name = type(strategy).__name__
    warmup, horizon = strategy.warmup, strategy.horizon
    if type(warmup) is not int or not 1 <= warmup <= WARMUP_MOST:
        raise ConfigInvalid(
            f"{name}.warmup is {_short(warmup)}; give a whole number of bars from 1 to "
            f"{WARMUP_MOST:,}."
        )
    if horizon is not None and (type(horizon) is not int or horizon < 1):
        raise ConfigInvalid(
            f"{name}.horizon is {_short(horizon)}; give a whole number of bars, or None."
        )
    if not GATES.keys() >= set(strategy.gates):
        raise ConfigInvalid(
            f"{name}.gates are {_short(strategy.gates)}; name gates of: {', '.join(gate_order())}."
        )
    if not TWINS.issuperset(strategy.twins):
        raise ConfigInvalid(f"{name}.twins are {_short(strategy.twins)}; the one twin is ungated.")


def _short(value: object, *, quoted: bool = True) -> str:
    """Return *value* in at most some 80 characters of one line."""
    text = " ".join((repr(value) if quoted else str(value)).split())
    return text if len(text) <= 80 else text[:77] + "…"  # a line's worth


# ---------------------------------------------------------------- what it is made of

_DYNAMIC: Final = frozenset({"import_module", "__import__"})


def class_sha256(made_of: type) -> str:
    """Return the id of *made_of*: the SHA-256 of every source file of its own that it is made of.

    A class that was typed (in a notebook, or after ``python -c``) is hashed by its source, and
    where not even that is kept, by its compiled code.
    """
    digest = hashlib.sha256()
    root = own_folder(made_of)
    if root is None:
        digest.update(_typed_source(made_of))
        return digest.hexdigest()
    module = sys.modules[made_of.__module__]
    assert module.__file__ is not None
    for path in own_sources(Path(module.__file__), root):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def own_folder(made_of: type) -> Path | None:
    """Return the folder in which the class's own code lies; None where it was typed.

    Of a package it is the folder that holds the outermost package.
    """
    module = sys.modules.get(made_of.__module__)
    file = getattr(module, "__file__", None)
    if not isinstance(module, ModuleType) or file is None or not Path(file).is_file():
        return None
    if "ipykernel" in Path(file).parent.name:
        return None
    folder = Path(file).resolve().parent
    depth = module.__name__.count(".") + hasattr(module, "__path__")
    for _ in range(depth if module.__name__ != "__main__" else 0):
        folder = folder.parent
    return folder


def own_sources(start: Path, root: Path) -> list[Path]:
    """Return *start* and every file under *root* that it imports, directly or not, sorted."""
    found: set[Path] = set()
    waiting = [start.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            waiting += _imported(path, root)
    return sorted(found)


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Yield the files under *root* that the source at *path* names in an import.

    Of an installed package only its own files: its folder also holds everybody else's.
    """
    package = path.parent.relative_to(root).parts
    alone = package[:1] or (path.stem,)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # Python cannot import it either, so it brings nothing more
    for name in _names(tree, package):
        if root.name in INSTALLED and name[:1] != alone:
            continue
        folder = root
        for part in name:
            folder = folder / part
            yield from _existing(folder / "__init__", folder)


def _existing(*stems: Path) -> Iterator[Path]:
    for stem in stems:
        for suffix in SUFFIXES:
            if (path := stem.with_name(stem.name + suffix)).is_file():
                yield path
                break
        else:
            yield from stem.parent.glob(f"{stem.name}.*.so")


def _names(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield every module that *tree* may import, as its parts below the own folder."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                yield from (tuple(alias.name.split(".")) for alias in aliases)
            case ast.ImportFrom(module=module, names=aliases, level=level):
                base = package[: len(package) - level + 1] if level else ()
                base += tuple((module or "").split(".")) if module else ()
                yield base
                yield from ((*base, alias.name) for alias in aliases)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                called = getattr(function, "attr", getattr(function, "id", ""))
                if called in _DYNAMIC:
                    yield tuple(part for part in name.split(".") if part)
            case _:
                pass


def _typed_source(made_of: type) -> bytes:
    """Return what is known of a typed class and of the typed classes that it derives from."""
    parts: list[bytes] = []
    for part in made_of.__mro__:
        if own_folder(part) is None and part.__module__ not in sys.builtin_module_names:
            try:
                parts.append(inspect.getsource(part).encode())
            except (OSError, TypeError):
                parts.append(part.__qualname__.encode())
                parts += _codes(vars(part).values())
    return b"\0".join(parts)


def _codes(values: Iterable[object]) -> Iterator[bytes]:
    """Yield the bytecode, names and constants of every function among *values*."""
    for value in values:
        if isinstance(value, FunctionType):
            value = value.__code__  # noqa: PLW2901 - a function is its code
        if isinstance(value, CodeType):
            yield value.co_code + repr((value.co_names, value.co_varnames)).encode()
            yield from _codes(value.co_consts)
        elif isinstance(value, (int, float, str, bytes, bool, tuple, frozenset)):
            yield repr(value).encode()
