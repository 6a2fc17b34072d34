"""Builds the forecaster that a checkpoint's card describes, by the registry of model kinds."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor, nn

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
from tracepaper.strategies.errors import AttentionInvalid, CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.features import rows as features
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.forecasters.outputs import TrainedModel
from tracepaper.strategies.forecasters.passes import DROPOUT_SPREAD, DropoutPasses, RelevancePasses
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.gates.card import calibration_of, per_horizon, section_of
from tracepaper.strategies.networks.architecture import Network, kind_of
from tracepaper.strategies.networks.flash import TILES, FlashConfig
from tracepaper.strategies.networks.keys import NetworkConfig
from tracepaper.strategies.networks.stream import stream_backends, stream_bytes
from tracepaper.strategies.other_symbol import RunOtherBars, other_columns, other_of

AnyNetwork = TypeVar("AnyNetwork", bound=Network)
AnyModule = TypeVar("AnyModule", bound=nn.Module)
_PROBE_BARS: Final = 64
_PROBE_SEED: Final = 20_240_501
_PROBE_CLIP: Final = 5.0  # features are clipped there


def computing() -> tuple[str, str]:
    """Return what the last bits of a forecast depend on: torch's version, and the processor.

    Numeric libraries choose their loops by the processor's maker too, not only by its instruction
    set, and other loops round differently.
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
    """Whether relevance to the mean at ``horizon`` is stored instead of the rollout."""
    vectors: CovariateSource | None = None
    """A user's covariates, for a network that was trained with some. By default a network of order
    books or of another symbol reads those of the run."""
    symbols: tuple[str, ...] = ()
    """The symbols of a model that answers for a whole close."""
    horizon: int | None = None
    """The horizon of the gates."""
    dropout_passes: int = 0
    """The number of passes with dropout, whose means have a spread; 0 for none."""
    say: Callable[[str], object] | None = None
    """Called with the reason if a user's code in the network fails and the answer is NaN."""


USUAL: Final = RunOptions()


def model_kinds() -> Mapping[str, ModelKind]:
    """Return every kind by its name, sorted by data source, networks first."""
    from tracepaper.strategies import forecasters, networks

    order, kinds = list(DataSource), KINDS.of(networks, forecasters).values()
    return {
        kind.name: kind
        for kind in sorted(kinds, key=lambda kind: (order.index(kind.source), not kind.has_network))
    }


def known_kind(card: Mapping[str, Any]) -> ModelKind | None:
    """Return the kind that *card* names; None if it is not registered."""
    return model_kinds().get(str(section_of(card, "model").get("kind")))


def build(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], options: RunOptions = USUAL
) -> Forecaster:
    """Return the forecaster of a checkpoint, probed once with bounded random features.

    It sets PyTorch's thread count, which a run records, and chooses the backend once. If
    ``free_bytes`` is given and the window would not fit for ``instruments``, it raises
    ``AttentionInvalid`` before it allocates anything. Raises ``ConfigInvalid`` for an unknown
    device, kind or feature schema, and ``CheckpointMismatch`` for a card that is wrong, and for
    tensors that do not fit its architecture or lead to values that are not finite.
    """
    with loading(card):
        return _built(card, tensors, options)


def _built(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], options: RunOptions
) -> Forecaster:
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
"""The forecasters of a network over one symbol's bars."""


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
            _stream_need(cast("FlashConfig", config), options.instruments, by_norm=by_norm)
            if streams
            else _window_need(config),
            config.window,
            available_bytes=options.free_bytes,
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


def _stream_need(config: FlashConfig, instruments: int, *, by_norm: bool) -> Callable[[int], int]:
    """Return a function from a window to the bytes of a network that streams."""
    return lambda window: stream_bytes(
        replace(config, window=window), instruments=instruments, by_norm=by_norm
    )


def _window_need(config: NetworkConfig) -> Callable[[int], int]:
    """Return a function from a window to the bytes of a network that takes whole windows."""
    # A network without attention counts as one head: it needs less.
    sizes = config.layers, getattr(config, "heads", 1), config.dim
    return lambda window: forward_bytes(config.dim, window) + rollout_bytes(*sizes, window)


def reject_method(options: RunOptions, kind: str) -> None:
    """Raise ``ConfigInvalid`` if *options* name a method, for a model without attention."""
    if options.method != PLAIN or options.by_relevance:
        raise ConfigInvalid(
            f"A model of the kind {kind} has no attention to explain; take [model] explanation out."
        )


def _streams_by(chosen: str, wanted: str, method: Rollout) -> str:
    """Return the backend of a stream: *chosen*, or tiles if compiled loops lack *method*."""
    if chosen == TILES or method.is_plain:
        return chosen
    if wanted != "auto":
        raise ConfigInvalid(
            f"{wanted} explains by the plain mean of the heads alone; set model.backend to auto or "
            f"{TILES} for another [model] explanation."
        )
    return TILES


def choose_backend(card: Mapping[str, Any], wanted: str, *, device: str) -> str:
    """Return the name of the backend for *wanted*, which is ``auto`` or a name.

    A stream attends by ``tiles``, or by compiled loops if they are built, and an informer by
    ``probsparse``; a network over whole windows by one of the kernels, of which ``flash_attn``
    multiplies in bfloat16. Raises ``ConfigInvalid`` for a device that does not exist, and
    ``ConfigInvalid`` or ``AttentionInvalid`` for a backend that is not available.
    """
    require_device(device)
    named = known_kind(card)
    if named is not None and named.members:
        return choose_backend(part_of(card, named.members[0]), wanted, device=device)
    if named is not None and named.build is not None and named.source is DataSource.BARS:
        return _one_backend(wanted, (named.name,))  # without attention, the kind's name is recorded
    kind, config = architecture(card)
    backend = kind.backend(config)
    if backend is None:
        dtype = torch.bfloat16 if kernels.is_half(wanted) else torch.float32
        heads = getattr(config, "heads", None)
        return kernels.resolve(
            wanted, device, dtype, None if heads is None else config.dim // heads
        )
    stream_config: Any = config
    backends = stream_backends(stream_config, device) if backend == TILES else (backend,)
    return _one_backend(wanted, backends)


def _one_backend(wanted: str, backends: Sequence[str]) -> str:
    """Return the *wanted* one of *backends*, the first for ``auto``; raise ``ConfigInvalid``."""
    if wanted != "auto" and wanted not in backends:
        names = " or ".join(reversed(backends))
        raise ConfigInvalid(
            f"model.backend is {wanted!r}, but this checkpoint's network attends by {names} alone; "
            f"set it to auto or {names}."
        )
    return backends[0] if wanted == "auto" else wanted


def require_device(device: str) -> None:
    """Raise ``ConfigInvalid`` if PyTorch has no such *device*: cpu, cuda or cuda:N."""
    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind != "cpu" and int(number or 0) >= count:
        raise ConfigInvalid(
            f"model.device is {device!r}, and PyTorch {torch.__version__} finds {count} CUDA "
            "devices; install a CUDA build of torch, check the driver with nvidia-smi, or set cpu."
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
"""The key of ``[features]`` for the wider schema by which a network's rows are computed."""
MEMBERS: Final = ("network", "rows")
"""The parts of an ensemble's card, and the prefixes of its tensors' names."""


def part_of(card: Mapping[str, Any], member: str) -> dict[str, Any]:
    """Return the card of one member of an ensemble, with the identity of the ensemble."""
    part = section_of(section_of(card, "parts"), member)
    identity = {key: section_of(card, "model").get(key, "") for key in ("id", "sha256")}
    return {**part, "model": {**section_of(part, "model"), **identity}}


def tensors_of(tensors: Mapping[str, Tensor], member: str) -> dict[str, Tensor]:
    """Return the tensors of one member of an ensemble, by their names in the member."""
    prefix = f"{member}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def restore(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Network:
    """Return the network of *card* with *tensors* as its weights, checked and probed."""
    with loading(card):
        kind, config = architecture(card)
        network: Network = _loaded(lambda: kind.make(config), tensors)
    return network


@contextmanager
def loading(card: Mapping[str, Any]) -> Iterator[None]:
    """Raise ``CheckpointMismatch`` for whatever a wrong number or word in *card* leads to.

    The hash of a card covers its numbers, so no number is checked by itself.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        cause = f"{type(e).__name__}: {' '.join(str(e).split())}"
        raise CheckpointMismatch(
            f"The card.toml of the checkpoint {section_of(card, 'model').get('id')} cannot be used "
            f"({cause:.200}); restore it, or train it again."
        ) from e


def _loaded(make: Callable[[], AnyNetwork], tensors: Mapping[str, Tensor]) -> AnyNetwork:
    """Make a network, load and probe it; raise ``CheckpointMismatch`` if that fails."""
    network = filled(make, tensors)
    _probe(network)
    return network


def filled(make: Callable[[], AnyModule], tensors: Mapping[str, Tensor]) -> AnyModule:
    """Make and load a module; raise ``CheckpointMismatch`` unless *tensors* are its weights."""
    network = make()
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        cause = " ".join(str(error).partition("\n")[2].split())
        raise CheckpointMismatch(
            f"The weights are not those of the card's architecture ({cause:.200}); use the "
            "checkpoint that the card belongs to."
        ) from None
    network.eval()
    return network


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
    schema = known_schema(card, vectors)
    computed = section_of(card, "features").get(COMPUTED, schema.schema_id)
    return TrainedModel(
        network=network,
        schema=schema,
        model_id=str(identity.get("id", "")),
        sha256=str(identity.get("sha256", "")),
        temperature=per_horizon(calibration.get("temperature", 1.0), horizons),
        content_free=float(calibration.get("content_free", network.content_free())),
        calibration=calibration_of(calibration, network.content_free(), horizons),
        wide=features.wider(schema, features.schema(str(computed))),
        levels=section_of(calibration, "further", {}),
    )


def known_schema(card: Mapping[str, Any], vectors: CovariateSource | None = None) -> FeatureSchema:
    """Return the feature schema of *card*, with *vectors* if it was trained with covariates.

    Raises ``ConfigInvalid`` for an unknown schema, and for missing covariates.
    """
    schema = features.schema(str(section_of(card, "features").get("schema_id")))
    other, of_books = other_of(card), reading_of(card) is not None
    if other or of_books:
        if vectors is None:
            verb = "reads order books" if of_books else "asks another symbol"
            raise ConfigInvalid(f"No model of several parts {verb}; use the part alone.")
        columns = (
            CovariateColumns(scale_of(card), vectors)
            if of_books
            else other_columns(schema, vectors)
        )
        return features.with_covariates(schema, columns)
    if not takes_vectors(card):
        return schema
    if vectors is None:
        raise ConfigInvalid(
            f"The model was trained with the covariates {', '.join(vector_scale(card).columns)}; "
            'name a file of them by [model] covariates = "FILE", or --covariates FILE.'
        )
    return features.with_covariates(schema, CovariateColumns(vector_scale(card), vectors))
