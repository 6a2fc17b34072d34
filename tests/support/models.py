"""Small networks with seeded weights, their cards and their forecasters, for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

import tracepaper.daemon.session.user_class  # noqa: F401 - it says how a class is found
from tracepaper.storage.checkpoints import save
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.forecasters.build import RunOptions, build
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.networks.architecture import Network, network_kinds
from tracepaper.strategies.networks.cross_asset import CrossAssetConfig, CrossAssetNetwork
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.networks.keys import listed
from tracepaper.strategies.networks.lstm import LstmConfig
from tracepaper.strategies.networks.timeframes import CrossConfig, MultiscaleConfig
from tracepaper.strategies.networks.trading import TradingConfig

AnyNetwork = TypeVar("AnyNetwork", bound=torch.nn.Module)
AnyConfig = (
    FlashConfig | InformerConfig | MultiscaleConfig | CrossConfig | TradingConfig | LstmConfig
)

SMALL = FlashConfig(dim=16, layers=3, heads=2, window=50)
"""A receptive field of 148 rows."""


ONE_LAYER = replace(SMALL, layers=1, window=16)
ONE_LAYER_CONTEXT = 16 + 480 - 1


def network(config: FlashConfig = SMALL, *, seed: int = 1) -> FlashNetwork:
    """Return a network whose every weight is random, heads included, so that all outputs move."""
    return _moved(lambda: FlashNetwork(config), seed)


def informer(config: InformerConfig, *, seed: int = 1) -> InformerNetwork:
    """Return such a network that ranks its queries and halves time between its layers."""
    return _moved(lambda: InformerNetwork(config), seed)


def weights(config: AnyConfig) -> dict[str, torch.Tensor]:
    """Return the tensors of such a network of any kind."""
    kind = network_kinds()[kind_of(config)]
    return dict(_moved(lambda: kind.make(config), 1).state_dict())


def _moved(make: Callable[[], AnyNetwork], seed: int) -> AnyNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return moved(make(), 0.1)


def moved(network: AnyNetwork, by: float = 0.3) -> AnyNetwork:
    """Return *network* with each weight moved *by* so much, so that all its parts say something."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return network.eval()


def card(config: AnyConfig = SMALL, **calibration: Any) -> dict[str, Any]:
    """Return the card of a checkpoint, as it is read from TOML: tuples are lists."""
    architecture = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return {
        "model": {"kind": kind_of(config), "id": "0123456789ab", "sha256": "01" * 32},
        "architecture": architecture,
        "features": {"schema_id": "v2-1m"},
        "market": {"interval": "1"},
        "calibration": calibration,
    }


def written(folder: Path) -> None:
    """Write a checkpoint of one layer, whose gates all have quantiles."""
    named = {gate.calibrated_as for gate in GATES.values()} - {""} | {"recent_mass"}
    described = card(
        ONE_LAYER,
        horizon=30,
        temperature={str(bars): 1.0 for bars in ONE_LAYER.horizons},
        slope={str(bars): 1.0 for bars in ONE_LAYER.horizons},
        content_free=0.0,
        quantiles={name: [1e-6 * (1 + at) for at in range(99)] for name in sorted(named)},
    )
    described["model"] = {"kind": "flash", "name": "one layer"}
    save(folder, network(ONE_LAYER).state_dict(), described)


def kind_of(config: AnyConfig) -> str:
    """Return the kind of network that *config* is of, as a card names it."""
    return type(config).__name__.removesuffix("Config").lower()


def forecaster(
    config: FlashConfig = SMALL, *, seed: int = 1, path: str = "step", **calibration: Any
) -> StreamingForecaster:
    """Return the streaming forecaster of such a checkpoint, on the CPU."""
    streaming = build(
        card(config, **calibration), network(config, seed=seed).state_dict(), RunOptions(mode=path)
    )
    assert isinstance(streaming, StreamingForecaster)
    return streaming


_COMMON: Final[dict[str, Any]] = {
    "features": 4,
    "dim": 8,
    "layers": 2,
    "horizons": [2, 7],
    "quantiles": [0.1, 0.9],
}
_DECODER: Final = {"window": 41, "factor": 2, "decoder_layers": 2, "start_token": 9}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "flash": {"heads": 2, "window": 9, "encoding": "alibi", "stochastic_depth": 0.1},
    "linear": {"heads": 2, "window": 20},
    "custom": {
        "heads": 2,
        "window": 20,
        "mechanism": "tracepaper.strategies.networks.custom:FadingAttention",
    },
    "lstm": {"window": 20},
    "informer": {"heads": 2, "window": 41, "factor": 2, "clock": ["week"]},
    "decoder": {"heads": 2, **_DECODER},
    "multiscale": {"heads": 2, "frames": [1, 4, 12], "tokens": [5, 4, 3]},
    "cross": {"heads": 2, "bars": 7, "frame": 4, "tokens": 3},
    "trading": {
        "heads": 2, "window": 15, "modalities": ["price", "time"], "columns": [0, 0, 1, 1],
    },
}  # fmt: skip
"""A small architecture of every kind of network, and of an informer with its decoder."""


def small(kind: str, *, by: float = 0.2, **keys: Any) -> Network:
    """Return a small network of *kind* with *keys* of its own, each weight moved *by* so much."""
    network_kind = network_kinds()["informer" if kind == "decoder" else kind]
    section = {**_COMMON, **KINDS[kind], **keys}
    torch.manual_seed(1)
    network: Network = network_kind.make(network_kind.read(section))
    return moved(network, by)


TOGETHER = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
TOGETHER_CONTEXT = 487
TOGETHER_EVERY = 3


def together(folder: Path, kind: str = "portfolio") -> Path:
    """Write a checkpoint of *kind* over three symbols, its weights drawn by chance."""
    torch.manual_seed(7)
    features = schema("v2-1m")
    config = CrossAssetConfig(
        symbols=TOGETHER, features=len(features.names), dim=8, layers=1, heads=2, window=8,
        horizons=(3, 5), allocation=kind == "portfolio", every=TOGETHER_EVERY,
    )  # fmt: skip
    network = CrossAssetNetwork(config)
    for name, parameter in network.named_parameters():
        if name.startswith(("allocate", "relative")):
            torch.nn.init.normal_(parameter, std=1.0)
    hundredths = [place / 100 for place in range(1, 100)]
    measured = ("confidence_entropy", "collapsed", "shift", "recent_mass")
    described = {
        "model": {"kind": kind, "name": kind},
        "architecture": listed(config),
        "features": {"schema_id": features.schema_id},
        "market": {"interval": "1"},
        "calibration": {
            "horizon": TOGETHER_EVERY,
            "slope": 1.0,
            "quantiles": {
                name: [0.1 * hundredth for hundredth in hundredths] for name in measured[:2]
            }
            | dict.fromkeys(measured[2:], hundredths),
        },
    }
    save(folder, network.state_dict(), described)
    return folder
