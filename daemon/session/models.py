"""From ``[model]`` to a forecaster; torch is imported here and only when a model is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracepaper.daemon.config.loading import Config
from tracepaper.strategies.strategy import Forecaster

if TYPE_CHECKING:
    from tracepaper.storage.checkpoints import Checkpoint

_KIB: Final = 1024


def load_checkpoint(config: Config, *, beside: Path | None = None) -> Checkpoint:
    """Load the configured checkpoint and keep a copy beside the database *beside*."""
    from tracepaper.storage import checkpoints

    folder = checkpoints.locate(config.model.checkpoint)
    checkpoint = checkpoints.load(folder)
    if beside is not None:
        checkpoints.keep(folder, beside)
    return checkpoint


def warnings_for(config: Config) -> tuple[str, ...]:
    """Return what a run with the configured checkpoint must say of it on its row."""
    from tracepaper.storage import checkpoints

    card = checkpoints.read_card(checkpoints.locate(config.model.checkpoint))
    trained, here = str(card["market"].get("interval", "")), config.market.interval
    if trained == here:
        return ()
    return (f"the checkpoint was trained on interval {trained}, and this run's is {here}",)


def chosen_backend(config: Config) -> str:
    """Return what the configured checkpoint's network attends by; refuse one it cannot have."""
    from tracepaper.storage import checkpoints
    from tracepaper.strategies.forecasters.build import choose_backend

    card = checkpoints.read_card(checkpoints.locate(config.model.checkpoint))
    return choose_backend(card, config.model.backend, device=_device(config))


def load_forecaster(
    config: Config, *, beside: Path | None = None, mode: str = "step"
) -> Forecaster:
    """Return the configured model, ready to be warmed; *mode* is ``step`` or ``scan``.

    Steps are ``batched`` where the bars of one close are dealt with together.
    """
    if mode == "step" and config.market.closes_together:
        mode = "batched"
    return _built(load_checkpoint(config, beside=beside), config, mode)


def forecaster_of(folder: Path, config: Config, *, mode: str) -> Forecaster:
    """Return the model of the checkpoint in *folder*, run as *config* says."""
    from tracepaper.storage import checkpoints

    return _built(checkpoints.load(folder), config, mode)


def computing(forecaster: Forecaster | None) -> tuple[str, str]:
    """Return torch's version and instruction set; both empty without a model."""
    if forecaster is None:
        return "", ""
    from tracepaper.strategies.forecasters import build

    return build.computing()


def _built(checkpoint: Checkpoint, config: Config, mode: str) -> Forecaster:
    from tracepaper.strategies.forecasters.build import build

    return build(
        checkpoint.card,
        checkpoint.tensors,
        device=_device(config),
        threads=config.model.threads,
        mode=mode,
        backend=config.model.backend,
        instruments=len(config.market.symbols),
        free_bytes=free_bytes(),
    )


def _device(config: Config) -> str:
    return "cpu" if config.model.device == "auto" else config.model.device


# The memory that this process could still be given.


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that machine and container would still give; None where neither says so.

    Linux does: ``MemAvailable`` of ``/proc/meminfo`` and, in a container, the limit of its
    control group (version 2). What either can drop at once, such as cached files, counts as free.
    """
    found = [_of_machine(root / "proc/meminfo"), _of_group(root / "sys/fs/cgroup")]
    return min((free for free in found if free is not None), default=None)


def _of_machine(meminfo: Path) -> int | None:
    available = _table(meminfo).get("MemAvailable:")
    return None if available is None else available * _KIB


def _of_group(folder: Path) -> int | None:
    limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    return max(0, limit - used + _table(folder / "memory.stat").get("inactive_file", 0))


def _number(path: Path) -> int | None:
    """Return the number in *path*; None where there is no such file, or it says ``max``."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Return the names and numbers of the lines of *path*; empty where there is no such file."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
