"""Bundled candles and frames; ``tracepaper data samples`` copies them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tracepaper.strategies import examples
from tracepaper.strategies.errors import DataInvalid

DEMO_CANDLES: Final = Path(__file__).with_name("binance_um_BTCUSDT_1m_2025-05-26.csv.gz")
"""12,000 one-minute candles of BTCUSDT (linear), 2025-05-26 to 2025-06-03, without holes."""
MONTH_CANDLES: Final = tuple(
    Path(__file__).with_name(f"binance_um_{symbol}_15m_2025-05.csv.gz")
    for symbol in ("BTCUSDT", "SOLUSDT")
)
"""2,879 candles of 15 minutes of each (linear), 2025-05-04 to 2025-06-03, without holes."""
HALF_HOUR_CANDLES: Final = Path(__file__).with_name("binance_um_ETHUSDT_30m_2025-05.csv.gz")
"""1,439 candles of 30 minutes of ETHUSDT (linear) over the same month, without holes."""
DEMO_CONFIG: Final = Path(__file__).with_name("demo.toml")
"""The configuration of ``tracepaper demo``."""


def samples(symbol: str, interval: str = "1m") -> Path:
    """Return the file of bundled candles of *symbol* at *interval*: data for a first backtest.

    Raises ``DataInvalid`` for any that is not bundled, and names those that are.
    """
    candles = (DEMO_CANDLES, *MONTH_CANDLES, HALF_HOUR_CANDLES)
    files = {tuple(path.name.split("_")[2:4]): path for path in candles}
    if (symbol, interval) not in files:
        choices = ", ".join(" ".join(name) for name in files)
        raise DataInvalid(f"There are no candles of {symbol} {interval}; choose of {choices}.")
    return files[symbol, interval]


def bundled() -> list[Path]:
    """Return every file to copy: candles, frames, covariates, configurations of the examples."""
    folder = Path(__file__).parent
    places = (folder.iterdir(), Path(examples.__file__).parent.iterdir())
    files = (path for place in places for path in place if path.is_file())
    return sorted((path for path in files if path.suffix != ".py"), key=lambda path: path.name)


def copy_samples(folder: Path) -> list[Path]:
    """Copy every bundled file into *folder*, which is made where it is missing; return the copies.

    What is there already and equal stays. Raises ``DataInvalid``, with nothing copied, where a
    file of one of the names holds something else.
    """
    contents = {folder / path.name: path.read_bytes() for path in bundled()}
    for path, content in contents.items():
        if path.exists() and path.read_bytes() != content:
            raise DataInvalid(f"{path} is not the bundled file; move it, or name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        path.write_bytes(content)
    return list(contents)
