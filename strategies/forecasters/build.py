"""Builds the forecaster that a checkpoint's card describes, by the registry of model kinds."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tracepaper.strategies.api.model import KINDS, DataSource, ModelKind
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.attention import kernels
from tracepaper.strategies.attention.checks import finite_layers
from tracepaper.strategies.attention.memory import forward_bytes, require_memory, rollout_bytes
from tracepaper.strategies.attention.methods import PLAIN, Rollout
from tracepaper.strategies.book_features import RunBooks, reading_of, scale_of
from tracepaper.strategies.covariates import (
    CovariateColumns,
    CovariateSource,
    takes_vectors,
    vector_scale,
)
from tracepaper.strategies.errors import (
    AttentionInvalid,
    CheckpointMismatch,
    ConfigInvalid,
    shown,
)
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.forecasters.outputs import TrainedModel
from tracepaper.strategies.forecasters.passes import (
    DROPOUT_SPREAD,
    DropoutPasses,
    RelevancePasses,
)
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.gates.card import (
    calibration_of,
    finite_number,
    per_horizon,
    section_of,
)
from tracepaper.strategies.networks.architecture import Network, kind_of
from tracepaper.strategies.networks.flash import TILES
from tracepaper.strategies.networks.keys import NetworkConfig
from tracepaper.strategies.networks.stream import stream_backends, stream_bytes
from tracepaper.strategies.other_symbol import RunOtherBars, other_columns, other_of

AnyNetwork = TypeVar("AnyNetwork", bound=Network)
AnyModule = TypeVar("AnyModule", bound=nn.Module)
MODES: Final = ("step", "batched", "scan")
_PROBE_BARS: Final = 64
_PROBE_SEED: Final = 20_240_501
_PROBE_CLIP: Final = 5.0  # features are clipped there


def computing() -> tuple[str, str]:
    """Name all that a forecast's last bits depend on: torch's version, and the processor.

    The numeric libraries choose their loops by the processor as well: of one instruction set, one
    of another maker rounds otherwise.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    return str(torch.__version__), f"{capability} of {_processor()}"


@cache
def _processor() -> str:
    """Return maker, family and model, such as ``GenuineIntel 6/143``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if "vendor_id" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['vendor_id']} {fields.get('cpu family', '?')}/{fields.get('model', '?')}"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a checkpoint is run, whatever its kind."""

    device: str = "cpu"
    threads: int = 1
    mode: str = "step"
    backend: str = "auto"
    instruments: int = 1
    free_bytes: int | None = None
    method: Rollout = PLAIN
    """How each bar's decision is explained."""
    by_relevance: bool = False
    """Whether relevance to the mean at ``horizon`` is stored in place of where attention flowed."""
    vectors: CovariateSource | None = None
    """What a user supplies to a network that was trained with some; without it one that learnt from
    order books, or of another symbol, is shown a run's."""
    symbols: tuple[str, ...] = ()
    """What a model of all symbols of a close is asked of."""
    horizon: int | None = None
    """That of the gates."""
    dropout_passes: int = 0
    """So many passes with dropout give the spread of their means."""
    say: Callable[[str], object] | None = None
    """Told why a bar that a user's code in the network fails on is answered by NaN."""

    def __post_init__(self) -> None:
        """Raise ``ConfigInvalid`` for an unknown mode and for no threads."""
        if self.mode not in MODES:
            raise ConfigInvalid(f"model.mode is {self.mode!r}; choose step, batched or scan.")
        if self.threads < 1:
            raise ConfigInvalid(f"model.threads is {self.threads}; it must be at least 1.")
        if self.dropout_passes == 1:
            raise ConfigInvalid(
                "model.dropout_passes is 1, and one pass has no spread; give 2 or more, or 0."
            )


USUAL: Final = RunOptions()


def model_kinds() -> Mapping[str, ModelKind]:
    """Return every kind by its name: by what it is asked about, and networks first."""
    from tracepaper.strategies import forecasters, networks

    order, kinds = list(DataSource), KINDS.of(networks, forecasters).values()
    return {
        kind.name: kind
        for kind in sorted(kinds, key=lambda kind: (order.index(kind.source), not kind.has_network))
    }


def known_kind(card: Mapping[str, Any]) -> ModelKind | None:
    """Return the kind that *card* names; None for one that is not registered."""
    return model_kinds().get(str(section_of(card, "model").get("kind")))


def build(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], options: RunOptions = USUAL
) -> Forecaster:
    """Return the forecaster of a checkpoint, probed once with bounded random features.

    Sets PyTorch's thread count, which is part of what a run records; ``backend`` is chosen once,
    see ``choose_backend``. Where ``free_bytes`` are known, a window that could not fit for so many
    ``instruments`` is refused before anything is allocated, with ``AttentionInvalid``. Raises
    ``ConfigInvalid`` for an unknown mode, device, kind or feature schema, and
    ``CheckpointMismatch`` for tensors that are not the ones the card's architecture asks for or
    that give values that are not finite.
    """
    vectors = options.vectors
    if (reading := reading_of(card)) is not None:
        vectors = vectors or RunBooks(reading)
    elif symbol := other_of(card):
        vectors = vectors or RunOtherBars(symbol, str(card["features"].get("schema_id")))
    elif vectors is not None and not takes_vectors(card):
        raise ConfigInvalid(
            "The checkpoint was trained without covariates; leave them out, or train with some."
        )
    options = replace(options, vectors=vectors)
    kind = known_kind(card)
    builder = None if kind is None else kind.build
    forecaster: Forecaster = (builder or network_forecaster)(card, tensors, options)
    if options.dropout_passes and DROPOUT_SPREAD not in forecaster.measures:
        raise ConfigInvalid(
            "model.dropout_passes is for a network that was trained with dropout, or an ensemble "
            "with one, and this checkpoint has none; set it to 0."
        )
    return forecaster


NetworkForecaster = StreamingForecaster | WindowedForecaster
"""What answers by a network of one symbol's bars."""


def network_forecaster(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], options: RunOptions
) -> NetworkForecaster:
    """Return the forecaster of a network: streaming, over whole windows or without attention."""
    attends_by = choose_backend(card, options.backend, device=options.device)
    torch.set_num_threads(options.threads)
    kind, config = architecture(card)
    method, mode, threads = options.method, options.mode, options.threads
    streams = kind.backend(config) == TILES
    if options.free_bytes is not None:
        by_norm = method.fusion == "norm"
        require_memory(
            _stream_need(config, options.instruments, by_norm=by_norm)
            if streams
            else _window_need(config),
            config.window,
            available_bytes=options.free_bytes,
            name="window",
        )
    network = _loaded(lambda: kind.make(config), tensors).to(torch.device(options.device))
    if options.say is not None:
        network.hold_by(options.say)
    model = _model(card, network, options.vectors)
    forecaster: NetworkForecaster
    if streams:
        forecaster = StreamingForecaster(
            model,
            mode=mode,
            threads=threads,
            instruments=options.instruments,
            backend=_streams_by(attends_by, options.backend, method),
            method=method,
        )
    else:
        if not network.has_attention:
            reject_method(options, kind.name)
        takes_kernel = network.attend_by(attends_by)
        dtype = "bfloat16" if takes_kernel and kernels.is_half(attends_by) else "float32"
        forecaster = WindowedForecaster(
            model, threads=threads, backend=attends_by, dtype=dtype, method=method, mode=mode
        )
    if options.dropout_passes and network.dropping():
        forecaster.passes += (DropoutPasses(model, options.dropout_passes),)
        forecaster.measures = forecaster.measures | {DROPOUT_SPREAD}
    if options.by_relevance:
        forecaster.passes += (RelevancePasses(model, options.horizon),)
    return forecaster


def reject_method(options: RunOptions, kind: str) -> None:
    """Raise ``ConfigInvalid`` where a method is asked for of a model without attention."""
    if options.method != PLAIN or options.by_relevance:
        raise ConfigInvalid(
            f"A model of the kind {kind} has no attention to explain; take [model] explanation out."
        )


def _streams_by(chosen: str, wanted: str, method: Rollout) -> str:
    """Return the backend of a stream: *chosen*, or tiles where no compiled loop explains so."""
    if chosen == TILES or method.is_plain:
        return chosen
    if wanted != "auto":
        raise ConfigInvalid(
            f"{wanted} explains by the plain mean of the heads alone; set model.backend to auto or "
            f"{TILES} for another [model] explanation."
        )
    return TILES


def _stream_need(config: Any, instruments: int, *, by_norm: bool) -> Callable[[int], int]:  # noqa: ANN401 - any that streams
    """Return the function that gives the bytes of streams of so many instruments for a window."""
    return lambda window: stream_bytes(
        replace(config, window=window), instruments=instruments, by_norm=by_norm
    )


def _window_need(config: NetworkConfig) -> Callable[[int], int]:
    """Return the function that gives the bytes of a network for a window."""
    # A network without attention counts as one head: what it holds is less.
    sizes = config.layers, getattr(config, "heads", 1), config.dim
    return lambda window: forward_bytes(config.dim, window) + rollout_bytes(*sizes, window)


def choose_backend(card: Mapping[str, Any], wanted: str, *, device: str) -> str:
    """Return the name of what attends when *wanted* is asked for: ``auto`` or a name.

    A stream attends by ``tiles`` of its own, or by compiled loops where they are built, and an
    informer by ``probsparse``; a network over whole windows by one of the kernels, of which
    ``flash_attn`` multiplies in bfloat16. Raises ``ConfigInvalid`` for a device that is not there,
    and that or ``AttentionInvalid`` for a name that cannot be had.
    """
    require_device(device)
    named = known_kind(card)
    if named is not None and named.members:
        return choose_backend(part_of(card, named.members[0]), wanted, device=device)
    if named is not None and named.build is not None and named.source is DataSource.BARS:
        return _own_backend(wanted, (named.name,))  # nothing attends: it is recorded by its name
    kind, config = architecture(card)
    backend = kind.backend(config)
    if backend is None:
        dtype = torch.bfloat16 if kernels.is_half(wanted) else torch.float32
        heads = getattr(config, "heads", None)
        return kernels.resolve(
            wanted, device, dtype, None if heads is None else config.dim // heads
        )
    streams: Any = config
    return _own_backend(
        wanted, stream_backends(streams, device) if backend == TILES else (backend,)
    )


def _own_backend(wanted: str, backends: Sequence[str]) -> str:
    """Return the *wanted* backend of a checkpoint's *backends*, the first for ``auto``."""
    if wanted != "auto" and wanted not in backends:
        names = " or ".join(reversed(backends))
        raise ConfigInvalid(
            f"model.backend is {wanted!r}, but this checkpoint's network attends by {names} alone; "
            f"set it to auto or {names}."
        )
    return backends[0] if wanted == "auto" else wanted


def require_device(device: str) -> None:
    """Raise ``ConfigInvalid`` where PyTorch has no such *device*, and say what is missing."""
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return
    if kind != "cuda":
        raise ConfigInvalid(f"model.device is {shown(device)}; choose cpu, cuda or cuda:N.")
    if not torch.backends.cuda.is_built():
        raise ConfigInvalid(
            f"model.device is {device!r}, but this PyTorch ({torch.__version__}) is built without "
            "CUDA; install a CUDA build of torch, or set cpu."
        )
    if not torch.cuda.is_available():
        raise ConfigInvalid(
            f"model.device is {device!r}, but PyTorch finds no CUDA device; check the driver with "
            "nvidia-smi, or set cpu."
        )
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigInvalid(
            f"model.device is {device!r}, and there are {torch.cuda.device_count()} CUDA devices; "
            "choose one from cuda:0 on."
        )


def architecture(card: Mapping[str, Any]) -> tuple[ModelKind, NetworkConfig]:
    """Return the kind and the configuration of the network that *card* describes, checked.

    Raises ``ConfigInvalid`` for an unknown kind or an architecture that cannot be built.
    """
    model_kinds()
    kind = kind_of(section_of(card, "model").get("kind"))
    config: NetworkConfig = kind.read(section_of(card, "architecture"))
    return kind, config


COMPUTED: Final = "computed_by"
"""The key of ``[features]`` that names the wider schema by which a network's rows are computed."""
MEMBERS: Final = ("network", "rows")
"""The parts of an ensemble's card, and what the names of its tensors begin with."""


def part_of(card: Mapping[str, Any], member: str) -> dict[str, Any]:
    """Return the card of one member of an ensemble, under the identity of the whole."""
    part = section_of(section_of(card, "parts"), member)
    identity = {key: section_of(card, "model").get(key, "") for key in ("id", "sha256")}
    return {**part, "model": {**section_of(part, "model"), **identity}}


def tensors_of(tensors: Mapping[str, Tensor], member: str) -> dict[str, Tensor]:
    """Return the tensors of one member of an ensemble, by the names that it was saved with."""
    start = f"{member}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def restore(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Network:
    """Return the network of *card* with *tensors* as its weights, checked and probed."""
    kind, config = architecture(card)
    network: Network = _loaded(lambda: kind.make(config), tensors)
    return network


def _loaded(make: Callable[[], AnyNetwork], tensors: Mapping[str, Tensor]) -> AnyNetwork:
    """Make a network, fill it and probe it; raise ``CheckpointMismatch`` where that fails."""
    network = filled(make, tensors)
    _probe(network)
    return network


def filled(make: Callable[[], AnyModule], tensors: Mapping[str, Tensor]) -> AnyModule:
    """Make a module and fill it; raise ``CheckpointMismatch`` unless *tensors* are its weights.

    Shapes are compared before anything is allocated: a card may name any size.
    """
    with torch.device("meta"), _Shapes():
        wanted = make().state_dict()
    for name, tensor in wanted.items():
        given = tensors.get(name)
        if given is None or given.shape != tensor.shape:
            state = "missing" if given is None else f"of shape {list(given.shape)}"
            raise CheckpointMismatch(
                f"The weight {name} is {state}, but the card's architecture has "
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
    network = make()
    network.load_state_dict({name: tensors[name].float() for name in wanted})
    network.eval()
    return network


class _Shapes(TorchFunctionMode):
    """Leaves tensors as they were made: to draw for one without memory imports a compiler."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call *func*, unless it is one that starts weights."""
        del types
        given = {} if kwargs is None else kwargs
        if func is nn.init.normal_:
            return given["tensor"]
        return func(*args, **given)


def _probe(network: Network) -> None:
    """Run bounded random features through the network and name the first layer that overflows."""
    source = torch.Generator().manual_seed(_PROBE_SEED)
    bars = _PROBE_BARS if network.takes_any_length else network.config.window
    rows = torch.randn(1, bars, network.config.features, generator=source)
    try:
        with torch.inference_mode(), finite_layers(network):
            network(rows.clamp(-_PROBE_CLIP, _PROBE_CLIP))
    except AttentionInvalid as error:
        raise CheckpointMismatch(
            f"This checkpoint cannot be used: {error} Train or fetch it again."
        ) from None


def _model(
    card: Mapping[str, Any], network: Network, vectors: CovariateSource | None
) -> TrainedModel:
    identity, calibration = section_of(card, "model"), section_of(card, "calibration", {})
    horizons = network.config.horizons
    schema = _schema(card, network.config.features, vectors)
    computed = section_of(card, "features").get(COMPUTED, schema.schema_id)
    return TrainedModel(
        network=network,
        schema=schema,
        model_id=str(identity.get("id", "")),
        sha256=str(identity.get("sha256", "")),
        temperature=_temperature(calibration, horizons),
        content_free=finite_number(
            calibration.get("content_free", network.content_free()), "content_free"
        ),
        calibration=calibration_of(calibration, network.content_free(), horizons),
        wide=features.wider(schema, features.schema(str(computed))),
        levels=section_of(calibration, "further", {}),
    )


def _schema(
    card: Mapping[str, Any], columns: int, vectors: CovariateSource | None
) -> FeatureSchema:
    schema = known_schema(card, vectors)
    if len(schema.names) != columns:
        raise CheckpointMismatch(
            f"The features {schema.schema_id} have {len(schema.names)} columns, but the network "
            f"takes {columns}; use the checkpoint that the card belongs to."
        )
    return schema


def known_schema(card: Mapping[str, Any], vectors: CovariateSource | None = None) -> FeatureSchema:
    """Return the feature schema of *card*, with a user's *vectors* where it was trained with some.

    Raises ``ConfigInvalid`` for an unknown one, and where it needs covariates and has none.
    """
    schema = features.schema(str(section_of(card, "features").get("schema_id")))
    other, of_books = other_of(card), reading_of(card) is not None
    if other or of_books:
        if vectors is None:
            what = "reads order books" if of_books else "asks another symbol"
            raise ConfigInvalid(f"No model of several parts {what}; use the part alone.")
        of_run = (
            CovariateColumns(scale_of(card), vectors)
            if of_books
            else other_columns(schema, vectors)
        )
        return features.with_covariates(schema, of_run)
    if not takes_vectors(card):
        return schema
    if vectors is None:
        raise ConfigInvalid(
            f"The model was trained with the covariates {', '.join(vector_scale(card).columns)}; "
            'name a file of them by [model] covariates = "FILE", or --covariates FILE.'
        )
    return features.with_covariates(schema, CovariateColumns(vector_scale(card), vectors))


def _temperature(calibration: Mapping[str, Any], horizons: tuple[int, ...]) -> tuple[float, ...]:
    temperatures = per_horizon(calibration.get("temperature", 1.0), horizons)
    if min(temperatures) <= 0:
        raise CheckpointMismatch("The card's calibration.temperature must be above 0.")
    return temperatures
