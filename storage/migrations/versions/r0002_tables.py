"""The first schema that is upgraded from: every table as it was when 0002 was written."""

from alembic import op

from tracepaper.strategies.errors import DataInvalid

revision = "0002"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
CREATE TABLE archive_series (
    series INTEGER NOT NULL,
    instrument_id TEXT NOT NULL,
    interval_ms INTEGER NOT NULL,
    instrument TEXT NOT NULL,
    PRIMARY KEY (series)
)
 STRICT
    """,
    """
CREATE TABLE events (
    step INTEGER NOT NULL,
    kind TEXT NOT NULL,
    instrument INTEGER,
    market_ms INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL,
    content TEXT NOT NULL,
    run_key INTEGER GENERATED ALWAYS AS (step >> 28) VIRTUAL,
    sequence INTEGER GENERATED ALWAYS AS (step & 268435455) VIRTUAL,
    market_iso TEXT GENERATED ALWAYS AS (CASE WHEN kind IN ('funding', 'gap', 'command',
        'instrument_change', 'model_change', 'end', 'prune', 'reading') THEN
        strftime('%Y-%m-%dT%H:%M:%S', (market_ms) / 1000, 'unixepoch') || printf('.%03dZ',
        (market_ms) % 1000) END) VIRTUAL,
    seen_iso TEXT GENERATED ALWAYS AS (CASE WHEN kind IN ('funding', 'gap', 'command',
        'instrument_change', 'model_change', 'end', 'prune', 'reading') THEN
        strftime('%Y-%m-%dT%H:%M:%S', (seen_ms) / 1000, 'unixepoch') || printf('.%03dZ',
        (seen_ms) % 1000) END) VIRTUAL,
    from_ms INTEGER GENERATED ALWAYS AS (CASE WHEN kind = 'gap' THEN json_extract(content,
        '$.from_ms') END) VIRTUAL,
    from_iso TEXT GENERATED ALWAYS AS (CASE WHEN kind = 'gap' THEN
        strftime('%Y-%m-%dT%H:%M:%S', (from_ms) / 1000, 'unixepoch') || printf('.%03dZ',
        (from_ms) % 1000) END) VIRTUAL,
    until_ms INTEGER GENERATED ALWAYS AS (CASE WHEN kind = 'gap' THEN json_extract(content,
        '$.until_ms') END) VIRTUAL,
    until_iso TEXT GENERATED ALWAYS AS (CASE WHEN kind = 'gap' THEN
        strftime('%Y-%m-%dT%H:%M:%S', (until_ms) / 1000, 'unixepoch') || printf('.%03dZ',
        (until_ms) % 1000) END) VIRTUAL,
    cause TEXT GENERATED ALWAYS AS (CASE WHEN kind = 'gap' THEN json_extract(content,
        '$.cause') END) VIRTUAL,
    repaired_by TEXT GENERATED ALWAYS AS (CASE WHEN kind = 'gap' THEN json_extract(content,
        '$.repaired_by') END) VIRTUAL,
    ended_at_ms INTEGER GENERATED ALWAYS AS (CASE WHEN kind = 'end' THEN
        json_extract(content, '$.ended_at_ms') END) VIRTUAL,
    ended_at_iso TEXT GENERATED ALWAYS AS (CASE WHEN kind = 'end' THEN
        strftime('%Y-%m-%dT%H:%M:%S', (ended_at_ms) / 1000, 'unixepoch') || printf('.%03dZ',
        (ended_at_ms) % 1000) END) VIRTUAL,
    PRIMARY KEY (step)
)
 STRICT
    """,
    """
CREATE TABLE fills (
    step INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    order_id TEXT NOT NULL,
    instrument INTEGER NOT NULL,
    side TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    price INTEGER NOT NULL,
    reference_price INTEGER NOT NULL,
    notional INTEGER NOT NULL,
    fee INTEGER NOT NULL,
    fee_base INTEGER NOT NULL,
    liquidity TEXT NOT NULL,
    model TEXT NOT NULL,
    reason TEXT NOT NULL,
    filled_ms INTEGER NOT NULL,
    run_key INTEGER GENERATED ALWAYS AS (step >> 28) VIRTUAL,
    sequence INTEGER GENERATED ALWAYS AS (step & 268435455) VIRTUAL,
    birth INTEGER GENERATED ALWAYS AS (CAST(order_id AS INTEGER)) VIRTUAL,
    filled_iso TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%S', (filled_ms) / 1000,
        'unixepoch') || printf('.%03dZ', (filled_ms) % 1000)) VIRTUAL,
    notional_real REAL GENERATED ALWAYS AS ((notional) / CAST('1e' || 10 AS REAL)) VIRTUAL,
    notional_text TEXT GENERATED ALWAYS AS (CASE WHEN (notional) IS NULL THEN NULL ELSE CASE
        WHEN (notional) < 0 THEN '-' ELSE '' END || (abs(notional) / CAST(CAST('1e' || (10) AS
        REAL) AS INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE printf('.%0*d', 10, abs(notional) %
        CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) END END) VIRTUAL,
    fee_real REAL GENERATED ALWAYS AS ((fee) / CAST('1e' || 10 AS REAL)) VIRTUAL,
    fee_text TEXT GENERATED ALWAYS AS (CASE WHEN (fee) IS NULL THEN NULL ELSE CASE WHEN
        (fee) < 0 THEN '-' ELSE '' END || (abs(fee) / CAST(CAST('1e' || (10) AS REAL) AS
        INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE printf('.%0*d', 10, abs(fee) % CAST(CAST('1e'
        || (10) AS REAL) AS INTEGER)) END END) VIRTUAL,
    PRIMARY KEY (step, ordinal)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE holdings (
    step INTEGER NOT NULL,
    book INTEGER NOT NULL,
    twin TEXT,
    instrument INTEGER,
    quantity INTEGER,
    entry_notional INTEGER,
    realized_pnl INTEGER,
    fees_paid INTEGER,
    funding_paid INTEGER,
    cash INTEGER NOT NULL,
    account_realized_pnl INTEGER NOT NULL,
    account_fees_paid INTEGER NOT NULL,
    account_funding_paid INTEGER NOT NULL,
    entry_notional_real REAL GENERATED ALWAYS AS ((entry_notional) / CAST('1e' || 10 AS
        REAL)) VIRTUAL,
    entry_notional_text TEXT GENERATED ALWAYS AS (CASE WHEN (entry_notional) IS NULL THEN
        NULL ELSE CASE WHEN (entry_notional) < 0 THEN '-' ELSE '' END || (abs(entry_notional) /
        CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE
        printf('.%0*d', 10, abs(entry_notional) % CAST(CAST('1e' || (10) AS REAL) AS INTEGER))
        END END) VIRTUAL,
    realized_pnl_real REAL GENERATED ALWAYS AS ((realized_pnl) / CAST('1e' || 10 AS REAL)) VIRTUAL,
    realized_pnl_text TEXT GENERATED ALWAYS AS (CASE WHEN (realized_pnl) IS NULL THEN NULL
        ELSE CASE WHEN (realized_pnl) < 0 THEN '-' ELSE '' END || (abs(realized_pnl) /
        CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE
        printf('.%0*d', 10, abs(realized_pnl) % CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) END
        END) VIRTUAL,
    fees_paid_real REAL GENERATED ALWAYS AS ((fees_paid) / CAST('1e' || 10 AS REAL)) VIRTUAL,
    fees_paid_text TEXT GENERATED ALWAYS AS (CASE WHEN (fees_paid) IS NULL THEN NULL ELSE
        CASE WHEN (fees_paid) < 0 THEN '-' ELSE '' END || (abs(fees_paid) / CAST(CAST('1e' ||
        (10) AS REAL) AS INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE printf('.%0*d', 10,
        abs(fees_paid) % CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) END END) VIRTUAL,
    funding_paid_real REAL GENERATED ALWAYS AS ((funding_paid) / CAST('1e' || 10 AS REAL)) VIRTUAL,
    funding_paid_text TEXT GENERATED ALWAYS AS (CASE WHEN (funding_paid) IS NULL THEN NULL
        ELSE CASE WHEN (funding_paid) < 0 THEN '-' ELSE '' END || (abs(funding_paid) /
        CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE
        printf('.%0*d', 10, abs(funding_paid) % CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) END
        END) VIRTUAL,
    cash_real REAL GENERATED ALWAYS AS ((cash) / CAST('1e' || 10 AS REAL)) VIRTUAL,
    cash_text TEXT GENERATED ALWAYS AS (CASE WHEN (cash) IS NULL THEN NULL ELSE CASE WHEN
        (cash) < 0 THEN '-' ELSE '' END || (abs(cash) / CAST(CAST('1e' || (10) AS REAL) AS
        INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE printf('.%0*d', 10, abs(cash) %
        CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) END END) VIRTUAL,
    account_realized_pnl_real REAL GENERATED ALWAYS AS ((account_realized_pnl) / CAST('1e'
        || 10 AS REAL)) VIRTUAL,
    account_realized_pnl_text TEXT GENERATED ALWAYS AS (CASE WHEN (account_realized_pnl) IS
        NULL THEN NULL ELSE CASE WHEN (account_realized_pnl) < 0 THEN '-' ELSE '' END ||
        (abs(account_realized_pnl) / CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) || CASE WHEN
        10 = 0 THEN '' ELSE printf('.%0*d', 10, abs(account_realized_pnl) % CAST(CAST('1e' ||
        (10) AS REAL) AS INTEGER)) END END) VIRTUAL,
    account_fees_paid_real REAL GENERATED ALWAYS AS ((account_fees_paid) / CAST('1e' || 10
        AS REAL)) VIRTUAL,
    account_fees_paid_text TEXT GENERATED ALWAYS AS (CASE WHEN (account_fees_paid) IS NULL
        THEN NULL ELSE CASE WHEN (account_fees_paid) < 0 THEN '-' ELSE '' END ||
        (abs(account_fees_paid) / CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) || CASE WHEN 10 =
        0 THEN '' ELSE printf('.%0*d', 10, abs(account_fees_paid) % CAST(CAST('1e' || (10) AS
        REAL) AS INTEGER)) END END) VIRTUAL,
    account_funding_paid_real REAL GENERATED ALWAYS AS ((account_funding_paid) / CAST('1e'
        || 10 AS REAL)) VIRTUAL,
    account_funding_paid_text TEXT GENERATED ALWAYS AS (CASE WHEN (account_funding_paid) IS
        NULL THEN NULL ELSE CASE WHEN (account_funding_paid) < 0 THEN '-' ELSE '' END ||
        (abs(account_funding_paid) / CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) || CASE WHEN
        10 = 0 THEN '' ELSE printf('.%0*d', 10, abs(account_funding_paid) % CAST(CAST('1e' ||
        (10) AS REAL) AS INTEGER)) END END) VIRTUAL,
    PRIMARY KEY (step, book)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE models (
    model_sha256 TEXT NOT NULL,
    weights_sha256 TEXT NOT NULL,
    card TEXT NOT NULL,
    PRIMARY KEY (model_sha256)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE orders (
    step INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    order_id TEXT NOT NULL,
    instrument INTEGER NOT NULL,
    side TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    filled INTEGER NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    eligible_ms INTEGER NOT NULL,
    run_key INTEGER GENERATED ALWAYS AS (step >> 28) VIRTUAL,
    sequence INTEGER GENERATED ALWAYS AS (step & 268435455) VIRTUAL,
    birth INTEGER GENERATED ALWAYS AS (CAST(order_id AS INTEGER)) VIRTUAL,
    created_iso TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%S', (created_ms) / 1000,
        'unixepoch') || printf('.%03dZ', (created_ms) % 1000)) VIRTUAL,
    eligible_iso TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%S', (eligible_ms) /
        1000, 'unixepoch') || printf('.%03dZ', (eligible_ms) % 1000)) VIRTUAL,
    PRIMARY KEY (step, ordinal)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE outcomes (
    step INTEGER NOT NULL,
    action TEXT NOT NULL,
    reason TEXT NOT NULL,
    allowed INTEGER NOT NULL,
    refused_by TEXT,
    gate_set INTEGER NOT NULL,
    gate_set_sha256 BLOB NOT NULL,
    passed INTEGER NOT NULL,
    regime TEXT NOT NULL,
    unfilled_reason TEXT,
    PRIMARY KEY (step)
)
 STRICT
    """,
    """
CREATE TABLE runs (
    run_key INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    started_at_ms INTEGER NOT NULL,
    parent_run_id TEXT,
    period_start_ms INTEGER NOT NULL,
    interval_ms INTEGER NOT NULL,
    config TEXT NOT NULL,
    config_sha256 TEXT NOT NULL,
    code_version TEXT NOT NULL,
    strategy TEXT NOT NULL,
    strategy_sha256 TEXT NOT NULL,
    model_id TEXT NOT NULL,
    model_sha256 TEXT NOT NULL,
    path TEXT NOT NULL,
    device TEXT NOT NULL,
    dtype TEXT NOT NULL,
    threads INTEGER NOT NULL,
    backend TEXT NOT NULL,
    torch_version TEXT NOT NULL,
    instruction_set TEXT NOT NULL,
    libraries TEXT NOT NULL,
    warnings TEXT NOT NULL,
    previous_run_id TEXT,
    previous_step_count INTEGER,
    previous_head BLOB,
    opened_gate_sets INTEGER NOT NULL,
    opened_digest BLOB NOT NULL,
    step_count INTEGER NOT NULL,
    head_digest BLOB NOT NULL,
    started_at_iso TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%S', (started_at_ms) /
        1000, 'unixepoch') || printf('.%03dZ', (started_at_ms) % 1000)) VIRTUAL,
    period_start_iso TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%S',
        (period_start_ms) / 1000, 'unixepoch') || printf('.%03dZ', (period_start_ms) % 1000))
        VIRTUAL,
    interval TEXT GENERATED ALWAYS AS (CASE interval_ms WHEN 86400000 THEN 'D' WHEN
        604800000 THEN 'W' ELSE CAST(interval_ms / 60000 AS TEXT) END) VIRTUAL,
    head_hex TEXT GENERATED ALWAYS AS (CASE WHEN head_digest IS NOT NULL THEN
        lower(hex(head_digest)) END) VIRTUAL,
    PRIMARY KEY (run_key),
    UNIQUE (run_id)
)
 STRICT
    """,
    """
CREATE TABLE steps (
    step INTEGER NOT NULL,
    shape INTEGER DEFAULT '1' NOT NULL,
    window_sha256 BLOB,
    decision_sha256 BLOB,
    outcome INTEGER,
    target_quantity INTEGER,
    measure_operator REAL,
    measure_warm REAL,
    measure_late REAL,
    measure_gap REAL,
    measure_plausible REAL,
    measure_stale REAL,
    measure_risk_notional REAL,
    measure_risk_drawdown REAL,
    measure_risk_daily_loss REAL,
    measure_risk_daily_trades REAL,
    holding INTEGER NOT NULL,
    unrealized_pnl INTEGER,
    account_unrealized_pnl INTEGER,
    equity INTEGER,
    state BLOB,
    kept_sha256 BLOB,
    digest BLOB NOT NULL,
    run_key INTEGER GENERATED ALWAYS AS (step >> 28) VIRTUAL,
    sequence INTEGER GENERATED ALWAYS AS (step & 268435455) VIRTUAL,
    accepted INTEGER GENERATED ALWAYS AS (shape & 1) VIRTUAL,
    window_hex TEXT GENERATED ALWAYS AS (CASE WHEN window_sha256 IS NOT NULL THEN
        lower(hex(window_sha256)) END) VIRTUAL,
    decision_hex TEXT GENERATED ALWAYS AS (CASE WHEN decision_sha256 IS NOT NULL THEN
        lower(hex(decision_sha256)) END) VIRTUAL,
    digest_hex TEXT GENERATED ALWAYS AS (CASE WHEN digest IS NOT NULL THEN
        lower(hex(digest)) END) VIRTUAL,
    PRIMARY KEY (step)
)
 STRICT
    """,
    """
CREATE TABLE twin_fills (
    step INTEGER NOT NULL,
    book INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    twin TEXT NOT NULL,
    order_id TEXT NOT NULL,
    instrument INTEGER NOT NULL,
    side TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    price INTEGER NOT NULL,
    reference_price INTEGER NOT NULL,
    notional INTEGER NOT NULL,
    fee INTEGER NOT NULL,
    fee_base INTEGER NOT NULL,
    liquidity TEXT NOT NULL,
    model TEXT NOT NULL,
    reason TEXT NOT NULL,
    filled_ms INTEGER NOT NULL,
    run_key INTEGER GENERATED ALWAYS AS (step >> 28) VIRTUAL,
    sequence INTEGER GENERATED ALWAYS AS (step & 268435455) VIRTUAL,
    birth INTEGER GENERATED ALWAYS AS (CAST(order_id AS INTEGER)) VIRTUAL,
    filled_iso TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%S', (filled_ms) / 1000,
        'unixepoch') || printf('.%03dZ', (filled_ms) % 1000)) VIRTUAL,
    notional_real REAL GENERATED ALWAYS AS ((notional) / CAST('1e' || 10 AS REAL)) VIRTUAL,
    notional_text TEXT GENERATED ALWAYS AS (CASE WHEN (notional) IS NULL THEN NULL ELSE CASE
        WHEN (notional) < 0 THEN '-' ELSE '' END || (abs(notional) / CAST(CAST('1e' || (10) AS
        REAL) AS INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE printf('.%0*d', 10, abs(notional) %
        CAST(CAST('1e' || (10) AS REAL) AS INTEGER)) END END) VIRTUAL,
    fee_real REAL GENERATED ALWAYS AS ((fee) / CAST('1e' || 10 AS REAL)) VIRTUAL,
    fee_text TEXT GENERATED ALWAYS AS (CASE WHEN (fee) IS NULL THEN NULL ELSE CASE WHEN
        (fee) < 0 THEN '-' ELSE '' END || (abs(fee) / CAST(CAST('1e' || (10) AS REAL) AS
        INTEGER)) || CASE WHEN 10 = 0 THEN '' ELSE printf('.%0*d', 10, abs(fee) % CAST(CAST('1e'
        || (10) AS REAL) AS INTEGER)) END END) VIRTUAL,
    PRIMARY KEY (step, book, ordinal)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE answers (
    step INTEGER NOT NULL,
    late_deadline_ms INTEGER,
    model_id TEXT,
    horizon INTEGER,
    mean_return REAL,
    stdev_return REAL,
    p_down REAL,
    p_flat REAL,
    p_up REAL,
    volatility REAL,
    horizons BLOB,
    confidence REAL,
    content_free REAL,
    recent_mass REAL,
    older_mass REAL,
    shift REAL,
    l1_error REAL,
    entropy BLOB,
    buckets BLOB,
    measure_deadline REAL,
    measure_finite REAL,
    measure_confidence REAL,
    measure_collapsed REAL,
    measure_shifted REAL,
    measure_regime REAL,
    measure_direction REAL,
    measure_edge REAL,
    PRIMARY KEY (step),
    FOREIGN KEY(step) REFERENCES steps (step)
)
 STRICT
    """,
    """
CREATE TABLE archive_bars (
    series INTEGER NOT NULL,
    open_time_ms INTEGER NOT NULL,
    open INTEGER NOT NULL,
    high INTEGER NOT NULL,
    low INTEGER NOT NULL,
    close INTEGER NOT NULL,
    volume INTEGER NOT NULL,
    turnover INTEGER,
    PRIMARY KEY (series, open_time_ms),
    FOREIGN KEY(series) REFERENCES archive_series (series)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE bars (
    step INTEGER NOT NULL,
    instrument INTEGER NOT NULL,
    open_time_ms INTEGER NOT NULL,
    open INTEGER NOT NULL,
    high INTEGER NOT NULL,
    low INTEGER NOT NULL,
    close INTEGER NOT NULL,
    volume INTEGER NOT NULL,
    turnover INTEGER,
    market_delay_ms INTEGER NOT NULL,
    seen_delay_ms INTEGER NOT NULL,
    source INTEGER NOT NULL,
    run_key INTEGER GENERATED ALWAYS AS (step >> 28) VIRTUAL,
    open_time_iso TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%S', (open_time_ms) /
        1000, 'unixepoch') || printf('.%03dZ', (open_time_ms) % 1000)) VIRTUAL,
    source_name TEXT GENERATED ALWAYS AS (CASE source WHEN 0 THEN 'stream' WHEN 1 THEN
        'rest' WHEN 2 THEN 'archive' END) VIRTUAL,
    PRIMARY KEY (step),
    FOREIGN KEY(step) REFERENCES steps (step)
)
 STRICT
    """,
    """
CREATE TABLE gate_sets (
    run_key INTEGER NOT NULL,
    gate_set INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    gate TEXT NOT NULL,
    threshold REAL NOT NULL,
    PRIMARY KEY (run_key, gate_set, ordinal),
    FOREIGN KEY(run_key) REFERENCES runs (run_key)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE instruments (
    run_key INTEGER NOT NULL,
    instrument INTEGER NOT NULL,
    instrument_id TEXT NOT NULL,
    category TEXT NOT NULL,
    symbol TEXT NOT NULL,
    base_coin TEXT NOT NULL,
    quote_coin TEXT NOT NULL,
    price_decimals INTEGER NOT NULL,
    quantity_decimals INTEGER NOT NULL,
    volume_decimals INTEGER NOT NULL,
    turnover_decimals INTEGER NOT NULL,
    tick_size INTEGER NOT NULL,
    quantity_step INTEGER NOT NULL,
    min_quantity INTEGER NOT NULL,
    max_quantity INTEGER NOT NULL,
    min_notional INTEGER NOT NULL,
    funding_interval_minutes INTEGER NOT NULL,
    status TEXT NOT NULL,
    PRIMARY KEY (run_key, instrument),
    FOREIGN KEY(run_key) REFERENCES runs (run_key)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE prunes (
    run_key INTEGER NOT NULL,
    until_sequence INTEGER NOT NULL,
    pruned_at_ms INTEGER NOT NULL,
    digest BLOB NOT NULL,
    kept_sha256 BLOB NOT NULL,
    state BLOB,
    PRIMARY KEY (run_key),
    FOREIGN KEY(run_key) REFERENCES runs (run_key)
)
 WITHOUT ROWID,
 STRICT
    """,
    """
CREATE TABLE twin_steps (
    step INTEGER NOT NULL,
    book INTEGER NOT NULL,
    holding INTEGER NOT NULL,
    unrealized_pnl INTEGER,
    account_unrealized_pnl INTEGER,
    equity INTEGER,
    confirmed INTEGER NOT NULL,
    PRIMARY KEY (step, book),
    FOREIGN KEY(step) REFERENCES steps (step)
)
 WITHOUT ROWID,
 STRICT
    """,
    "CREATE INDEX bars_time ON bars (open_time_ms, run_key)",
    "CREATE INDEX events_reading ON events (step) WHERE kind = 'reading'",
    """
CREATE INDEX events_run_sequence ON events (run_key, sequence) WHERE kind IN ('funding',
'gap', 'command', 'instrument_change', 'model_change', 'end', 'prune', 'reading')
    """,
    """
CREATE INDEX events_sequence ON events (sequence) WHERE kind IN ('funding', 'gap',
'command', 'instrument_change', 'model_change', 'end', 'prune', 'reading')
    """,
    "CREATE INDEX fills_order ON fills (order_id, run_key)",
    "CREATE INDEX fills_run_sequence ON fills (run_key, sequence)",
    "CREATE INDEX fills_sequence ON fills (sequence)",
    "CREATE INDEX orders_order ON orders (order_id, run_key)",
    "CREATE INDEX orders_run_sequence ON orders (run_key, sequence)",
    "CREATE INDEX orders_sequence ON orders (sequence)",
    "CREATE INDEX steps_run_sequence ON steps (run_key, sequence)",
    "CREATE INDEX steps_sequence ON steps (sequence)",
    "CREATE INDEX twin_fills_run_sequence ON twin_fills (run_key, sequence)",
    "CREATE INDEX twin_fills_sequence ON twin_fills (sequence)",
)


def upgrade() -> None:
    """Make the tables."""
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: an audit log is never taken apart."""
    raise DataInvalid("An audit log is not downgraded; restore a backup.")
