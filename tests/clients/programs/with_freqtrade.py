"""freqtrade in a dry run, futures or spot: it enters at once and leaves at its next look."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

rest_url, stream_url, category = sys.argv[1:4]
futures = category == "linear"
streams = {
    name: f"{stream_url}/v5/public/{name}" for name in ("spot", "linear", "inverse", "option")
}
api = dict.fromkeys(("spot", "futures", "v2", "public", "private"), rest_url)
pricing = {"price_side": "other", "use_order_book": True, "order_book_top": 1}
configuration = {
    "max_open_trades": 1,
    "stake_currency": "USDT",
    "stake_amount": 1000,
    "dry_run": True,
    "dry_run_wallet": 100_000,
    "trading_mode": "futures" if futures else "spot",
    "margin_mode": "isolated" if futures else "",
    "entry_pricing": pricing,
    "exit_pricing": pricing,
    "exchange": {
        "name": "bybit",
        "pair_whitelist": ["BTC/USDT:USDT" if futures else "BTC/USDT"],
        "ccxt_config": {"urls": {"api": {**api, "ws": {"public": streams}}}},
    },
    "pairlists": [{"method": "StaticPairList"}],
    "internals": {"process_throttle_secs": 1},
    "initial_state": "running",
}
Path("config.json").write_text(json.dumps(configuration))
Path("user").mkdir()
strategies = Path(__file__).parent / "strategies"
command = [sys.executable, "-m", "freqtrade", "trade", "-c", "config.json", "--userdir", "user"]
command += ["-s", "Always", "--strategy-path", str(strategies), "--db-url", "sqlite:///trades.db"]
lines: list[str] = []
is_answered = False
with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
) as process:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "exit_fill" in line and not is_answered:  # one word, as long lines are wrapped
            is_answered = True
            process.send_signal(signal.SIGTERM)
    process.wait()
print("".join(lines[-60:]))
rows = sqlite3.connect("trades.db").execute(
    "SELECT amount, open_rate, close_rate FROM trades WHERE NOT is_open"
)
closed = rows.fetchall()
amount, open_rate, close_rate = closed[0]
print(
    json.dumps(
        {"closed": len(closed), "amount": amount, "open_rate": open_rate, "close_rate": close_rate}
    )
)
