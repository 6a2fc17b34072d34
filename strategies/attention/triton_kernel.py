"""The Triton kernels of a rollout: without atomics, so results are bit-identical every time.

Imported only if triton is installed; ``TRITON_INTERPRET=1`` runs them on the CPU, slowly.
"""

# Triton gives subscripts and annotations a meaning of its own.
# pyright: reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scores_of(
    queries_by_dim,
    keys_by_dim,
    factor,  # scale · log2 e, over the cap where there is one
    cap,  # of the scores, times log2 e
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,  # multiply in float32: the interpreter has no half types
    PRECISION: tl.constexpr,  # of products of float32 numbers
):
    """Return the scores [query, key] to base 2."""
    if WIDEN:
        queries_by_dim = queries_by_dim.to(tl.float32)
        keys_by_dim = keys_by_dim.to(tl.float32)
    # TF32 alone would round away the digits that the logsumexp was computed with.
    scores = tl.dot(queries_by_dim, keys_by_dim, input_precision=PRECISION)
    scores = scores * factor
    if CAPPED:
        scores = cap * (2.0 * tl.sigmoid(2.0 * scores) - 1.0)  # the hyperbolic tangent
    return scores


@triton.jit
def push_kernel(
    query,  # [pair, time, dim], contiguous; a pair is one head of one batch element
    key,  # [key pair, time, dim]
    minus_logsumexp,  # [pair, time] float32, times log2 e
    weights,  # [batch, row, time] float32
    result,  # [pair, row, time] float32
    factor,  # scale · log2 e, over the cap where there is one
    cap,  # of the scores, times log2 e
    time,
    rows,
    heads,
    group,  # heads that share a key head
    window,  # bars that a query sees; at least ``time`` where there is no window
    key_blocks,
    row_blocks,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,  # a power of two, at least 16
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,  # multiply in float32: the interpreter has no half types
    PRECISION: tl.constexpr,  # of products of float32 numbers
    ROWS: tl.constexpr,  # 1, or rows of weights that share the exponentials, at least 16
    SCAN: tl.constexpr,  # weights that are read at once, a multiple of QUERIES
):
    """Write ``Σ_i w_i exp2(factor·q_i·k_j - lse_i)`` for one block of keys j and of rows of w.

    All programs lie on the grid's first axis, the only one that takes more than 65,535.
    """
    program = tl.program_id(0)
    key_block = program % key_blocks
    row_block = (program // key_blocks) % row_blocks
    pair = (program // key_blocks // row_blocks).to(tl.int64)
    key_start = key_block * KEYS
    key_at = key_start + tl.arange(0, KEYS)
    dim_at = tl.arange(0, DIM_PADDED)
    # Rows times queries, or bars, pass 2^31 at 32,768 rows of 65,536.
    row_at = row_block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_dim = dim_at < DIM
    is_key = key_at < time
    keys_by_dim = tl.load(
        key + pair // group * time * DIM + key_at[None, :] * DIM + dim_at[:, None],
        mask=is_dim[:, None] & is_key[None, :],
        other=0.0,
    )
    batch_weights = weights + (pair // heads) * rows * time
    # Of the queries that see any key of the block, find the first and the last with a weight.
    begin = 0
    end = time
    if CAUSAL:
        begin = key_start
        end = tl.minimum(time, key_start + KEYS - 1 + window)
    first = end
    last = begin
    for start in range(begin, end, SCAN):
        index = start + tl.arange(0, SCAN)
        shares = tl.load(
            batch_weights + row_at[:, None] * time + index[None, :],
            mask=(row_at < rows)[:, None] & (index < end)[None, :],
            other=0.0,
        )
        is_used = tl.max((shares != 0.0).to(tl.int32), axis=0) > 0
        first = tl.minimum(first, tl.min(tl.where(is_used, index, end), axis=0))
        last = tl.maximum(last, tl.max(tl.where(is_used, index + 1, begin), axis=0))
    sums = tl.zeros([ROWS, KEYS], dtype=tl.float32)
    for start in range(first // QUERIES * QUERIES, last, QUERIES):
        index = start + tl.arange(0, QUERIES)
        is_query = index < time
        queries_by_dim = tl.load(
            query + pair * time * DIM + index[:, None] * DIM + dim_at[None, :],
            mask=is_query[:, None] & is_dim[None, :],
            other=0.0,
        )
        bias = tl.load(minus_logsumexp + pair * time + index, mask=is_query, other=-float("inf"))
        scores = scores_of(queries_by_dim, keys_by_dim, factor, cap, CAPPED, WIDEN, PRECISION)
        entries = tl.exp2(scores + bias[:, None])
        if CAUSAL:
            distance = index[:, None] - key_at[None, :]
            entries = tl.where((distance >= 0) & (distance < window), entries, 0.0)
        shares = tl.load(
            batch_weights + row_at[:, None] * time + index[None, :],
            mask=(row_at < rows)[:, None] & is_query[None, :],
            other=0.0,
        )
        if ROWS == 1:
            sums += tl.sum(tl.trans(shares) * entries, axis=0)[None, :]
        else:
            sums += tl.dot(shares, entries, input_precision=PRECISION)
    tl.store(
        result + pair * rows * time + row_at[:, None] * time + key_at[None, :],
        sums,
        mask=(row_at < rows)[:, None] & is_key[None, :],
    )


@triton.jit
def mass_kernel(
    query,  # [pair, time, dim], contiguous; a pair is one head of one batch element
    key,  # [key pair, time, dim]
    minus_logsumexp,  # [pair, time] float32, times log2 e
    place,  # [row] int32: the query of each row
    result,  # [2, pair, row] float32
    factor,  # scale · log2 e, over the cap where there is one
    cap,  # of the scores, times log2 e
    time,
    rows,
    group,  # heads that share a key head
    window,  # bars that a query sees; at least ``time`` where there is no window
    pairs,
    row_blocks,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,  # a power of two, at least 16
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,  # multiply in float32: the interpreter has no half types
    PRECISION: tl.constexpr,  # of products of float32 numbers
):
    """Write the mass ``Σ_j p_ij`` of one block of rows, and its entropy in nats."""
    program = tl.program_id(0)
    pair = (program // row_blocks).to(tl.int64)
    row_at = (program % row_blocks) * QUERIES + tl.arange(0, QUERIES)
    dim_at = tl.arange(0, DIM_PADDED)
    is_dim = dim_at < DIM
    is_row = row_at < rows
    query_at = tl.load(place + row_at, mask=is_row, other=0)
    queries_by_dim = tl.load(
        query + pair * time * DIM + query_at[:, None] * DIM + dim_at[None, :],
        mask=is_row[:, None] & is_dim[None, :],
        other=0.0,
    )
    bias = tl.load(minus_logsumexp + pair * time + query_at, mask=is_row, other=0.0)
    begin = 0
    end = time
    if CAUSAL:
        oldest = tl.min(tl.where(is_row, query_at, time), axis=0) - window + 1
        begin = tl.maximum(oldest, 0) // KEYS * KEYS
        end = tl.max(query_at, axis=0) + 1
    mass = tl.zeros([QUERIES], dtype=tl.float32)
    entropy = tl.zeros([QUERIES], dtype=tl.float32)
    for start in range(begin, end, KEYS):
        key_at = start + tl.arange(0, KEYS)
        is_key = key_at < time
        keys_by_dim = tl.load(
            key + pair // group * time * DIM + key_at[None, :] * DIM + dim_at[:, None],
            mask=is_dim[:, None] & is_key[None, :],
            other=0.0,
        )
        scores = scores_of(queries_by_dim, keys_by_dim, factor, cap, CAPPED, WIDEN, PRECISION)
        logs = scores + bias[:, None]
        is_shown = is_key[None, :]
        if CAUSAL:
            distance = query_at[:, None] - key_at[None, :]
            is_shown = is_shown & (distance >= 0) & (distance < window)
        entries = tl.where(is_shown, tl.exp2(logs), 0.0)
        mass += tl.sum(entries, axis=1)
        entropy -= tl.sum(entries * logs, axis=1)
    at = pair * rows + row_at
    tl.store(result + at, mass, mask=is_row)
    # Rounding may fall below 0 on a row that sees one key alone.
    nats = tl.maximum(entropy * 0.6931471805599453, 0.0)
    tl.store(result + pairs.to(tl.int64) * rows + at, nats, mask=is_row)
