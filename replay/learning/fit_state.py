"""The kept state of a fit: one file of tensors and facts, whole or not there.

It is a safetensors file whose metadata hold the facts as JSON beside a hash of both, written beside
its place, synced and renamed: a process that is killed at any moment leaves the state before or the
state after. Nothing in it can run when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tracepaper.strategies.errors import CheckpointMismatch

STATE_NAME: Final = "training.safetensors"
_FACTS: Final = "facts"
_HASH: Final = "sha256"


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write *tensors* and the JSON of *facts* to *path*, in place of what was there.

    Raises ``OSError`` that names *path* where the disk is full; what was there is left.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    content = save(whole, metadata={_FACTS: text, _HASH: _hashed(whole, text)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts in *path*; raise ``CheckpointMismatch`` unless it is whole."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        about, tensors = {}, {}
    text = about.get(_FACTS, "")
    if not text or about.get(_HASH) != _hashed(tensors, text):
        raise CheckpointMismatch(f"{path} is not the state of a fit; delete it and start again.")
    facts: dict[str, Any] = json.loads(text)
    return tensors, facts


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* with ``prefix/`` before their names."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix/``, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def _hashed(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
