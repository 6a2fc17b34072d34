"""The Triton rollout kernel: one program a key block, so no atomics and equal bits every time.

Imported only where triton is installed; ``TRITON_INTERPRET=1`` runs it on the CPU, slowly.
"""

# Triton gives subscripts and annotations a meaning of its own.
# pyright: reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def push_kernel(
    query,  # [pair, query, dim], contiguous; a pair is one head of one batch element
    key,  # [key pair, time, dim]
    minus_logsumexp,  # [pair, query] float32, times log2 e
    weights,  # [batch, row, query] float32
    place,  # [query] int32: the bar of each query, ascending; queries of no weight are left out
    first,  # [key block] int32: the first query that sees any key of the block
    last,  # [key block] int32: one past the last
    result,  # [pair, row, time] float32
    factor,  # scale · log2 e, over the cap where there is one
    cap,  # of the scores, times log2 e
    time,
    queries,
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
    if WIDEN:
        keys_by_dim = keys_by_dim.to(tl.float32)
    own_weights = weights + (pair // heads) * rows * queries
    sums = tl.zeros([ROWS, KEYS], dtype=tl.float32)
    for start in range(tl.load(first + key_block), tl.load(last + key_block), QUERIES):
        index = start + tl.arange(0, QUERIES)
        is_query = index < queries
        queries_by_dim = tl.load(
            query + pair * queries * DIM + index[:, None] * DIM + dim_at[None, :],
            mask=is_query[:, None] & is_dim[None, :],
            other=0.0,
        )
        if WIDEN:
            queries_by_dim = queries_by_dim.to(tl.float32)
        bias = tl.load(minus_logsumexp + pair * queries + index, mask=is_query, other=-float("inf"))
        # TF32 alone would round away the digits that the logsumexp was computed with.
        scores = tl.dot(queries_by_dim, keys_by_dim, input_precision=PRECISION)
        scores = scores * factor
        if CAPPED:
            scores = cap * (2.0 * tl.sigmoid(2.0 * scores) - 1.0)  # the hyperbolic tangent
        entries = tl.exp2(scores + bias[:, None])
        if CAUSAL:
            query_at = tl.load(place + index, mask=is_query, other=0)
            distance = query_at[:, None] - key_at[None, :]
            entries = tl.where((distance >= 0) & (distance < window), entries, 0.0)
        shares = tl.load(
            own_weights + row_at[:, None] * queries + index[None, :],
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
