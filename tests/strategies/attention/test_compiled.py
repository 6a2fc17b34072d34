"""Compiled loops give what torch and stored matrices give, and are built where gcc is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

import dense_attention as reference
import models
import numpy as np
import pytest
import torch
from attention_cases import Case, bucketed, case, layers_of, masks, rolled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_objects import SOURCE, built, library_of, loops_of
from programs import ROOT
from torch import Tensor

from tracepaper.strategies.attention import compiled
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.forecasters.build import RunOptions, build, choose_backend
from tracepaper.strategies.forecasters.trees import leaf_values
from tracepaper.strategies.networks.encodings import ENCODINGS
from tracepaper.strategies.networks.flash import TILES
from tracepaper.strategies.networks.stream import (
    CHUNK_BARS,
    Advance,
    StreamingNetwork,
    StreamState,
    stream_backends,
)

NEAR: Final = 1e-6
"""Sixteen roundings of a number of size 1; routes of float32 have differed by a third of it."""


def has(instructions: str) -> bool:
    return f" {instructions} " in Path("/proc/cpuinfo").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every object has just been built."""
    return built(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module", params=compiled.NAMES)
def name(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """Each object that runs here, alone, in the place of those beside the source."""
    with loops_of(folder) as available, pytest.MonkeyPatch.context() as patch:
        if request.param not in available:
            pytest.skip(f"this processor lacks what {request.param} needs")
        alone = {request.param: compiled.loops()[request.param]}
        patch.setattr(compiled, "loops", lambda: alone)
        yield request.param


def test_it_is_built_where_a_compiler_is_and_runs_where_the_processor_does(folder: Path) -> None:
    assert {path.name for path in folder.glob("*.so")} == {
        compiled.file_of(instruction) for instruction in compiled.NAMES
    }
    for instruction, needs in zip(compiled.NAMES, ("avx512f", "avx2"), strict=True):
        assert (compiled.opened(folder / compiled.file_of(instruction)) is not None) == has(needs)


def test_an_object_of_other_sources_is_left_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "native.avx2.so", tmp_path)
    assert compiled.opened(tmp_path / "native.avx2.so") is None  # no source beside it
    source = (folder / "native.c").read_text(encoding="utf-8")
    (tmp_path / "native.c").write_text(source + "\n", encoding="utf-8")
    assert compiled.opened(tmp_path / "native.avx2.so") is None
    (tmp_path / "native.c").write_text(source, encoding="utf-8")
    assert (compiled.opened(tmp_path / "native.avx2.so") is not None) == has("avx2")
    (tmp_path / "native.avx512.so").write_bytes(b"no object")
    assert compiled.opened(tmp_path / "native.avx512.so") is None
    # A library of Python's own has none of our symbols.
    stranger = import_module("_ctypes").__file__
    assert stranger is not None
    shutil.copyfile(stranger, tmp_path / "native.avx512.so")
    assert compiled.opened(tmp_path / "native.avx512.so") is None


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "/bin/false"])
def test_without_a_compiler_that_works_nothing_is_built_and_nothing_fails(
    tmp_path: Path, compiler: str
) -> None:
    done = library_of(tmp_path, compiler)
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line]
    assert len(warnings) == len(compiled.NAMES)
    assert all(compiler in line for line in warnings)
    assert list(tmp_path.glob("*.so")) == []


def test_an_object_has_the_same_bytes_wherever_it_is_built(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "checkout"
    named = ("setup.py", "pyproject.toml", "daemon/version.py", str(SOURCE.relative_to(ROOT)))
    for name in named:
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, elsewhere / name)
    assert library_of(tmp_path, "gcc", elsewhere).returncode == 0
    for name in compiled.NAMES:
        again = (tmp_path / compiled.file_of(name)).read_bytes()
        assert again == (folder / compiled.file_of(name)).read_bytes()


class DrawnLayers(NamedTuple):
    """Layers of float32 with their matrices, and rows that are carried through them."""

    case: Case
    rows: list[int]


@st.composite
def drawn(draw: st.DrawFn) -> DrawnLayers:
    time = draw(st.integers(1, 150))
    made_case = case(
        draw(masks(170)),
        seed=draw(st.integers(0, 999)),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        time=time,
        dim=draw(st.sampled_from([1, 2, 7, 8, 15, 16, 17, 33])),
        layers=draw(st.integers(1, 3)),
        size=draw(st.sampled_from([0.0, 0.3, 1.0])),
        dtype=torch.float32,
    )
    rows = draw(st.lists(st.integers(0, time - 1), min_size=1, max_size=9))
    return DrawnLayers(made_case, rows)


# The object is the same for every example.
REPEATED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)


@REPEATED
@given(drawn())
def test_rollout_is_that_of_torch_and_of_stored_matrices(name: str, drawn: DrawnLayers) -> None:
    made_case, rows = drawn
    queries, keys, sums, matrices, mask = made_case
    compiled_result, torchs = (
        rolled(layers_of(queries, keys, sums, mask), rows, backend=backend)
        for backend in (name, "tiles")
    )
    torch.testing.assert_close(compiled_result.weights, torchs.weights, atol=NEAR, rtol=0.0)
    torch.testing.assert_close(compiled_result.l1_error, torchs.l1_error, atol=NEAR, rtol=0.0)
    dense = reference.rollout(matrices, mask)[:, rows]
    for result in (compiled_result, torchs):
        made_case.hold(result.weights, dense)


@REPEATED
@given(drawn())
def test_entropy_is_that_of_torch_and_of_stored_matrices(name: str, drawn: DrawnLayers) -> None:
    made_case, *_ = drawn
    queries, keys, sums, matrices, mask = made_case
    compiled_entropy, torchs = (
        Layer(queries[0], keys[0], None, sums[0], mask).entropy(backend=backend)
        for backend in (name, "tiles")
    )
    dense = torch.special.entr(matrices[0]).sum(-1)
    for entropy in (compiled_entropy, torchs):
        limit = made_case.entropy_rounding(0)
        torch.testing.assert_close(entropy.double(), dense, atol=limit, rtol=0.0)


@REPEATED
@given(drawn(), st.integers(1, 40), st.sampled_from([0.0, 0.5]))
def test_buckets_are_those_of_torch_and_of_stored_matrices(
    name: str, drawn: DrawnLayers, bucket_bars: int, residual: float
) -> None:
    made_case, *_ = drawn
    queries, keys, sums, matrices, mask = made_case
    heads = queries[0].shape[1]
    options = Rollout(head_weights=list(range(1, heads + 1)), residual_weight=residual)
    assert compiled.available() == (name,)
    compiled_buckets, torchs = (
        bucketed(
            layers_of(queries, keys, sums, mask), options, backend=backend, bucket_bars=bucket_bars
        ).weights
        for backend in ("auto", "tiles")
    )
    weights = torch.arange(1.0, heads + 1, dtype=torch.float64)
    shares = (weights / weights.sum()).expand(len(queries), -1)
    dense = reference.rollout(matrices, mask, residual_weight=residual, shares=shares)
    padded = torch.nn.functional.pad(dense, (0, -dense.shape[2] % bucket_bars))
    summed = padded.unflatten(2, (-1, bucket_bars)).sum(-1)
    for buckets in (compiled_buckets, torchs):
        made_case.hold(buckets, summed)


@pytest.mark.parametrize("mask", [Mask.full(), Mask(), Mask.window(333)])
def test_long_sums_stay_exact_and_threads_change_no_bit(name: str, mask: Mask) -> None:
    made_case = case(mask, time=1_501, dim=16, dtype=torch.float32)
    queries, keys, sums, matrices, _ = made_case
    before = torch.get_num_threads()
    results = []
    try:
        for threads in range(1, 5):
            torch.set_num_threads(threads)
            rows = rolled(layers_of(queries, keys, sums, mask), [700, 1_500], backend=name).weights
            spread = Layer(queries[1], keys[1], None, sums[1], mask).entropy(backend=name)
            every = bucketed(layers_of(queries, keys, sums, mask)).weights
            results.append((rows, spread, every))
    finally:
        torch.set_num_threads(before)
    for made_by_more in results[1:]:
        assert all(map(torch.equal, made_by_more, results[0]))
    made_case.hold(results[0][0], reference.rollout(matrices, mask)[:, [700, 1_500]])
    entropy = torch.special.entr(matrices[1]).sum(-1)
    limit = made_case.entropy_rounding(1)
    torch.testing.assert_close(results[0][1].double(), entropy, atol=limit, rtol=0.0)


def test_auto_takes_the_fastest_and_leaves_to_torch_what_is_not_float32(name: str) -> None:
    assert compiled.runs_on(name, torch.device("cpu"))
    single, double = (case(Mask(), dtype=kind).layers[0] for kind in (torch.float32, torch.float64))
    assert compiled.choose(single.operand) == name
    assert compiled.choose(double.operand) is None
    queries, keys, sums, matrices, mask = case(Mask())
    exact = rolled(layers_of(queries, keys, sums, mask), [39], backend=name).weights
    torch.testing.assert_close(exact, reference.rollout(matrices, mask)[:, [39]])
    entropy = Layer(queries[0], keys[0], None, sums[0], mask).entropy(backend=name)
    torch.testing.assert_close(entropy, torch.special.entr(matrices[0]).sum(-1))
    query = single.query.clone().requires_grad_()
    spread = Layer(query, single.key, None, single.logsumexp, mask).entropy(backend=name)
    assert not spread.requires_grad  # an explanation carries no gradient
    with pytest.raises(AttentionInvalid, match="no rollout backend 'nativ'; choose auto"):
        Layer(queries[0], keys[0], None, sums[0], mask).entropy(backend="nativ")


def test_an_object_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, sums, _, mask = case(Mask(), dtype=torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "loops", dict)
        with pytest.raises(AttentionInvalid, match="install a C compiler"):
            rolled(layers_of(queries, keys, sums, mask), [3], backend="native_avx2")
        with pytest.raises(AttentionInvalid, match="install a C compiler"):
            Layer(queries[0], keys[0], None, sums[0], mask).entropy(backend="native_avx2")
        with pytest.raises(ConfigInvalid, match="set it to auto or tiles"):
            choose_backend(models.card(), "native_avx2", device="cpu")
        assert choose_backend(models.card(), "auto", device="cpu") == "tiles"


# --- streams


class Rings(NamedTuple):
    """What streams left behind, and the new rows that meet it."""

    query: Tensor
    keys: Tensor  # with the new rows in them, as the others
    values: Tensor
    rollout: Tensor
    end: int
    counts: tuple[int, ...]
    window: int

    def scanned(self, name: str) -> compiled.WindowRows:
        query, keys, values, rollout, end, counts, window = self
        stop = end + query.shape[1]
        new = compiled.StreamRows(*(x[:, end:stop] for x in (keys, values, rollout)))
        rings = compiled.StreamRows(*(x.clone() for x in (keys, values, rollout)))
        for ring in rings:
            ring[:, end:stop] = torch.nan
        scanned = compiled.scan_rows(
            query, new, rings, end=end, counts=counts, window=window, scale=0.3, name=name
        )
        assert all(map(torch.equal, rings, (keys, values, rollout)))
        return scanned

    def dense(self) -> compiled.WindowRows:
        """Return the same in float64, from whole matrices."""
        pairs, time, _ = self.query.shape
        heads = pairs // len(self.counts)
        at = torch.arange(self.keys.shape[1]) - self.end
        rows = torch.arange(time)[:, None]
        visible = (at <= rows) & (at > rows - self.window)
        counts = torch.tensor(self.counts).repeat_interleave(heads)
        visible = visible & (at >= -counts[:, None, None])
        scores = 0.3 * self.query.double() @ self.keys.double().mT
        shares = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        figures = torch.stack(
            [
                shares.sum(-1),
                scores.masked_fill(~visible, -torch.inf).amax(-1),
                shares.amax(-1),
                (shares * scores).sum(-1),
            ],
            dim=-1,
        )
        mean = shares.unflatten(0, (-1, heads)).mean(1)
        return compiled.WindowRows(
            shares @ self.values.double(), figures, mean @ self.rollout.double()
        )


@st.composite
def rings(draw: st.DrawFn) -> Rings:
    window, time = draw(st.integers(1, 140)), draw(st.sampled_from([1, 2, 7, 63, 64, 65, 130]))
    heads, streams = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dim, width = draw(st.sampled_from([1, 6, 8, 16, 18, 32])), draw(st.sampled_from([3, 16, 48]))
    end = window - 1 + draw(st.integers(0, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    pairs, length = heads * streams, end + time + 3
    counts = tuple(draw(st.sampled_from([0, 1, window // 2, 5 * window])) for _ in range(streams))
    query = normal(pairs, time, dim)
    if draw(st.booleans()):
        query = query.transpose(0, 1).contiguous().transpose(0, 1)  # as a projection leaves it
    rollout = normal(streams, length, width).abs()
    rollout[:, : length // 2, width // 2 :] = 0.0  # buckets that these bars cannot have reached
    keys, values = normal(pairs, length, dim), normal(pairs, length, dim)
    return Rings(query, keys, values, rollout, end, counts, window)


@REPEATED
@given(rings())
def test_a_scan_is_that_of_whole_matrices(name: str, rings: Rings) -> None:
    for row, dense in zip(rings.scanned(name), rings.dense(), strict=True):
        torch.testing.assert_close(row, dense.float(), atol=3 * NEAR, rtol=NEAR)


@pytest.mark.parametrize("encoding", [each for each in ENCODINGS if each != "alibi"])
def test_a_stream_says_the_same_by_loops_and_by_tiles(name: str, encoding: str) -> None:
    net = models.network(replace(models.SMALL, encoding=encoding))
    document: dict[str, list[Advance]] = {}
    for backend in (name, "tiles"):
        stream, state = StreamingNetwork(net, backend=backend), StreamState(net, streams=2)
        drawn = torch.Generator().manual_seed(1)
        document[backend], at = [], 29_000_017
        for bars in (150, 1, CHUNK_BARS, 1, 70):
            x = torch.randn(2, bars, net.config.features, generator=drawn)
            positions = np.arange(at, at + bars, dtype=np.int64)
            given = (x, np.stack([positions, positions]))
            document[backend].append(stream.advance(state, *given, streams=(0, 1), padded=bars > 1))
            at += bars
    for advance, torchs in zip(document[name], document["tiles"], strict=True):
        for output, other in zip(advance.outputs, torchs.outputs, strict=True):
            torch.testing.assert_close(output, other, atol=2 * NEAR, rtol=NEAR)
        torch.testing.assert_close(advance.confidence, torchs.confidence, atol=2 * NEAR, rtol=0.0)
        np.testing.assert_allclose(advance.rollout, torchs.rollout, atol=NEAR, rtol=0.0)


@REPEATED
@given(rings())
def test_threads_change_no_bit_of_a_scan(name: str, rings: Rings) -> None:
    """The loops alone: products around them are MKL's, whose bits follow the threads on AVX2."""
    before, scans = torch.get_num_threads(), []
    try:
        for threads in range(1, 5):
            torch.set_num_threads(threads)
            scans.append(rings.scanned(name))
    finally:
        torch.set_num_threads(before)
    assert all(all(map(torch.equal, scan, scans[0])) for scan in scans[1:])


def test_a_stream_with_a_bias_is_left_to_tiles(name: str) -> None:
    assert stream_backends(replace(models.SMALL, encoding="alibi"), "cpu") == ("tiles",)
    assert stream_backends(models.SMALL, "cuda") == ("tiles",)
    assert stream_backends(models.SMALL, "cpu") == (*compiled.available(), "tiles")
    assert (
        build(models.card(), models.network().state_dict(), RunOptions(backend=name)).backend
        == name
    )


def test_a_stream_is_explained_by_loops_only_where_they_take_the_heads_mean(name: str) -> None:
    card, tensors = models.card(), models.network().state_dict()
    usual = Rollout(residual_weight=0.2, start_layer=1)
    other = Rollout(fusion="max")
    assert build(card, tensors, RunOptions(method=other)).backend == TILES
    with pytest.raises(ConfigInvalid, match=f"{name} explains by the plain mean of the heads"):
        build(card, tensors, RunOptions(backend=name, method=other))
    assert build(card, tensors, RunOptions(backend=name, method=usual)).backend == name
    x = torch.randn(1, 200, 78, generator=torch.Generator().manual_seed(3))
    positions = np.arange(29_000_017, 29_000_217)[None]
    rollouts = []
    for backend in (name, TILES):
        network = models.network()
        stream = StreamingNetwork(network, usual, backend=backend)
        rollouts.append(stream.advance(StreamState(network), x, positions, padded=True).rollout)
    np.testing.assert_allclose(rollouts[0], rollouts[1], rtol=0, atol=NEAR)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    features=st.integers(0, 4),
    edges=st.integers(1, 9),
    word=st.sampled_from([np.uint32, np.uint64]),
)
def test_the_leaves_of_trees_are_those_of_numpy(
    name: str, seed: int, features: int, edges: int, word: type[np.unsignedinteger]
) -> None:
    rng = np.random.default_rng(seed)
    bits, trees = 8 * np.dtype(word).itemsize, 2 * compiled.TREES_AT_ONCE
    entries = rng.integers(0, np.iinfo(word).max, (1 + features * (edges + 2), trees), word)
    entries |= word(1) << (bits - 1)  # a leaf remains
    entries[0] = np.iinfo(word).max
    first = 1 + (edges + 2) * np.arange(features)
    table = compiled.TreeTable(
        rng.integers(0, 5, features), np.sort(rng.integers(0, 9, (features, edges)) / 2.0),
        first, first + edges + 1, entries, rng.normal(size=bits * trees), bits * np.arange(trees),
    )  # fmt: skip
    rows = rng.integers(-1, 10, (40, 5)) / 2.0  # they meet edges
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[rng.random(rows.shape) < 0.05] = np.inf
    np.testing.assert_array_equal(compiled.leaf_values(rows, table, name), leaf_values(rows, table))
