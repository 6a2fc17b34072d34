"""Optional packages, the extras that install them, and the error for a missing one.

Commands check before they compute anything, and name the option that needs the package.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from tracepaper.strategies.errors import ConfigInvalid

EXTRAS: Final = {
    "apprise": "notify",
    "captum": "attributions",
    "cvxpy": "portfolio",
    "lightgbm": "train",
    "matplotlib": "plot",
    "onnx": "export",
    "onnxscript": "export",
    "optuna": "sweep",
    "polars": "report",
    "psycopg": "postgresql",
    "pyarrow": "data",
    "ray": "scale",
    "yfinance": "yahoo",
}
"""The extra that installs each package; ``tracepaper[all]`` installs every one of them."""


def missing_sentence(package: str, needed_by: str) -> str:
    """Return how to install the missing *package*; *needed_by* begins the sentence."""
    return (
        f"{needed_by} needs {package}: install it with pip install "
        f"'tracepaper[{EXTRAS[package]}]', or 'tracepaper[all]'."
    )


def is_installed(package: str) -> bool:
    """Return whether *package* is installed, without importing it."""
    return find_spec(package) is not None


def require(package: str, needed_by: str, given: object = True) -> None:  # noqa: FBT002 - a value
    """Raise ``ConfigInvalid`` if *needed_by* is *given* and *package* is not installed."""
    if given and not is_installed(package):
        raise ConfigInvalid(missing_sentence(package, needed_by))
