"""A checkpoint's card and tensors → the forecaster that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from tracepaper.strategies import features
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.forecaster import Forecaster
from tracepaper.strategies.forecasters.streaming import Model, StreamingForecaster
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.types import Calibration

PATHS: Final = ("step", "scan")
_PROBE_BARS: Final = 64
_PROBE_SEED: Final = 20_240_501
_PROBE_CLIP: Final = 5.0  # features are clipped there


def build(
    card: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    device: str = "cpu",
    threads: int = 1,
    path: str = "step",
) -> Forecaster:
    """Return the forecaster of a checkpoint, probed once with bounded random features.

    Sets PyTorch's thread count, which is part of what a run records. Raises ``ConfigInvalid``
    for an unknown path, device, kind or feature schema, and ``CheckpointMismatch`` for tensors
    that are not the ones the card's architecture asks for or that give values that are not finite.
    """
    if path not in PATHS:
        raise ConfigInvalid(f"model.path is {path!r}; choose step or scan.")
    if device != "cpu":
        raise ConfigInvalid(f"model.device is {device!r}; a stream is stepped on the cpu.")
    if threads < 1:
        raise ConfigInvalid(f"model.threads is {threads}; it must be at least 1.")
    torch.set_num_threads(threads)
    kind = _section(card, "model").get("kind")
    if kind != "flash":
        raise ConfigInvalid(f"The model's card names the kind {kind!r}; this builds flash.")
    network = restore(card, tensors)
    return StreamingForecaster(_model(card, network), path=path, threads=threads)


def restore(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FlashNetwork:
    """Return the network of *card* with *tensors* as its weights, checked and probed."""
    network = FlashNetwork(FlashConfig.read(_section(card, "architecture")))
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        given = tensors.get(name)
        if given is None or given.shape != tensor.shape:
            found = "missing" if given is None else f"of shape {list(given.shape)}"
            raise CheckpointMismatch(
                f"The weight {name} is {found}, but the card's architecture has "
                f"{list(tensor.shape)}; use the checkpoint that the card belongs to."
            )
        if not bool(torch.isfinite(given).all()):
            raise CheckpointMismatch(
                f"The weight {name} holds a value that is not finite; train or fetch it again."
            )
    if unknown := sorted(set(tensors) - set(wanted)):
        raise CheckpointMismatch(
            f"The weight {unknown[0]} is not part of the card's architecture; use the checkpoint "
            "that the card belongs to."
        )
    network.load_state_dict({name: tensors[name].float() for name in wanted})
    _probe(network)
    return network.eval()


def _probe(network: FlashNetwork) -> None:
    """Run bounded random features through the network and name the first layer that overflows."""
    source = torch.Generator().manual_seed(_PROBE_SEED)
    shape = (1, _PROBE_BARS, network.config.features)
    rows = torch.randn(shape, generator=source).clamp(-_PROBE_CLIP, _PROBE_CLIP)
    network.eval()
    with torch.inference_mode():
        named = network.named_states(rows)
        for name, state in named:
            if not bool(torch.isfinite(state).all()):
                raise CheckpointMismatch(
                    f"The layer {name} of this checkpoint gives values that are not finite; "
                    "train or fetch it again."
                )


def _model(card: Mapping[str, Any], network: FlashNetwork) -> Model:
    identity, calibration = _section(card, "model"), card.get("calibration", {})
    schema = features.schema(str(_section(card, "features").get("schema_id")))
    if len(schema.names) != network.config.features:
        raise CheckpointMismatch(
            f"The features {schema.schema_id} have {len(schema.names)} columns, but the network "
            f"takes {network.config.features}; use the checkpoint that the card belongs to."
        )
    horizons = network.config.horizons
    return Model(
        network=network,
        schema=schema,
        model_id=str(identity.get("id", "")),
        sha256=str(identity.get("sha256", "")),
        temperature=_per_horizon(calibration.get("temperature", 1.0), horizons),
        content_free=float(calibration.get("content_free", network.content_free())),
        calibration=_calibration(calibration, network, horizons),
    )


def _calibration(
    section: Mapping[str, Any], network: FlashNetwork, horizons: tuple[int, ...]
) -> Calibration | None:
    if "quantiles" not in section:
        return None
    slopes = _per_horizon(section.get("slope", 1.0), horizons)
    return Calibration(
        quantiles={name: tuple(map(float, q)) for name, q in section["quantiles"].items()},
        slope=dict(zip(horizons, slopes, strict=True)),
        content_free=float(section.get("content_free", network.content_free())),
    )


def _per_horizon(value: object, horizons: tuple[int, ...]) -> tuple[float, ...]:
    """Return one number a horizon of a number, a list or a table with the horizons as keys."""
    if isinstance(value, int | float):
        return (float(value),) * len(horizons)
    if isinstance(value, Mapping) and all(str(h) in value for h in horizons):
        return tuple(float(value[str(h)]) for h in horizons)
    if isinstance(value, list | tuple) and len(value) == len(horizons):
        return tuple(map(float, value))
    raise CheckpointMismatch(
        f"The card's calibration has {value!r} for the horizons {list(horizons)}; it needs one "
        "number for each."
    )


def _section(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = card.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointMismatch(f"The model's card has no section [{name}]; train it again.")
    return dict(section)
