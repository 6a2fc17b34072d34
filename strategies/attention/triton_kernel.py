"""The Triton rollout kernel: one program a key block, so no atomics and equal bits every time.

Imported only where triton is installed; ``TRITON_INTERPRET=1`` runs it on the CPU, slowly.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def push_kernel(
    query,  # [pair, time, dim], contiguous; a pair is one head of one batch element
    key,  # the same
    bias,  # [pair, row, time] float32: (ln w - lse) · log2 e
    result,  # [pair, row, time] float32
    factor,  # scale · log2 e
    time,
    rows,
    window,  # bars that a query sees; at least ``time`` where there is no window
    CAUSAL: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,  # a power of two, at least 16
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Write ``Σ_i exp2(factor·q_i·k_j + bias_i)`` for one block of keys j and one row of weights.

    One matrix product and one exponential a tile: no second product, no running maximum.
    """
    pair = tl.program_id(1) // rows
    key_start = tl.program_id(0) * KEYS
    key_at = key_start + tl.arange(0, KEYS)
    dim_at = tl.arange(0, DIM_PADDED)
    base = pair.to(tl.int64) * time * DIM
    is_dim = dim_at < DIM
    keys_by_dim = tl.load(
        key + base + key_at[None, :] * DIM + dim_at[:, None],
        mask=is_dim[:, None] & (key_at < time)[None, :],
        other=0.0,
    )
    first = 0
    last = time
    if CAUSAL:
        first = (key_start // QUERIES) * QUERIES
        last = tl.minimum(time, key_start + KEYS - 1 + window)
    biases = bias + tl.program_id(1).to(tl.int64) * time
    sums = tl.zeros([KEYS], dtype=tl.float32)
    for start in range(first, last, QUERIES):
        query_at = start + tl.arange(0, QUERIES)
        is_query = query_at < time
        queries = tl.load(
            query + base + query_at[:, None] * DIM + dim_at[None, :],
            mask=is_query[:, None] & is_dim[None, :],
            other=0.0,
        )
        row_bias = tl.load(biases + query_at, mask=is_query, other=-float("inf"))
        # TF32 would round away the digits that the logsumexp was computed with.
        scores = tl.dot(queries, keys_by_dim, input_precision="ieee")
        entries = tl.exp2(scores * factor + row_bias[:, None])
        if CAUSAL:
            distance = query_at[:, None] - key_at[None, :]
            entries = tl.where((distance >= 0) & (distance < window), entries, 0.0)
        sums += tl.sum(entries, axis=0)
    tl.store(result + tl.program_id(1).to(tl.int64) * time + key_at, sums, mask=key_at < time)
