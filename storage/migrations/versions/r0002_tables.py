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
