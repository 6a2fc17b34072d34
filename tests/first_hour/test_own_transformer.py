"""A newcomer's own transformer of PyTorch: it trades, is explained, and shows where it looked.

The facts in the sentences that the user sees are compared with the record by SQL.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from newcomer import Shell, account_of, rows

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SAMPLE = "samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
FILES = {
    "small.py": '''\
import torch
from torch import nn

import tracepaper as tp
from tracepaper import attention


class Small(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.embed = nn.Linear(inputs, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.encoder(self.embed(x), mask=mask, is_causal=True)[:, -1])[:, 0]


class Own(tp.Model):
    """Forecasts the mean return over 30 bars from the features of the last 32."""

    features = "v2"
    context = 32
    trained_until = "2025-05-30T11:32"

    def __init__(self, options, files):
        weights = torch.load(files["small.pt"], weights_only=True)
        self.net = Small(weights["embed.weight"].shape[1]).eval()
        self.net.load_state_dict(weights)

    def predict(self, inputs):
        with torch.inference_mode():
            return {"mean_return": self.net(torch.tensor(inputs.features)[None]).item() / 1_000}

    def attended(self, inputs):
        with torch.no_grad(), attention.capture(self.net) as captured:
            self.net(torch.tensor(inputs.features)[None])
        return captured.rollout().weights["tokens"][0, 0].tolist()
''',
    "fit.py": f"""\
import numpy as np
import torch
from small import Small

from tracepaper.replay.archive import read_candles
from tracepaper.strategies.features import columns, compute, schema

bars = columns(read_candles("{SAMPLE}").bars())
rows = compute(schema("v2-1m"), bars)
ends = np.arange(rows.first + 31, 6_000 - 30, 10)
inputs = torch.tensor(np.stack([rows.values[end - 31 : end + 1] for end in ends]))
ahead = torch.tensor(np.log(bars.close[ends + 30] / bars.close[ends])).float()
torch.manual_seed(1)
net = Small(inputs.shape[2])
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
for _ in range(20):
    loss = torch.nn.functional.huber_loss(net(inputs), 1_000 * ahead)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.save(net.state_dict(), "small.pt")
""",
    "own.toml": """\
[strategy]
name = "attention"
[model]
class = "small:Own"
files = ["small.pt"]
""",
    "look.py": """\
import torch
from small import Small

import tracepaper as tp
from tracepaper import attention
from tracepaper.strategies.features import columns, compute, schema
from tracepaper.replay.archive import read_candles

last = tp.open_run("own.db#last").decisions[-1]
bars = columns(read_candles("samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz").bars())
end = bars.open_time_ms.tolist().index(last["open_time_ms"].item()) + 1
inputs = torch.tensor(compute(schema("v2-1m"), bars).values[end - 32 : end])[None]
weights = torch.load("small.pt", weights_only=True)
net = Small(inputs.shape[2]).eval()
net.load_state_dict(weights)
with torch.no_grad(), attention.capture(net) as captured:
    print("forecast", net(inputs).item() / 1_000)
shares = captured.rollout().weights["tokens"][0, 0]
print("looked", *shares.tolist())
""",
}


def test_an_own_transformer_trades_is_explained_and_shows_where_it_looked(
    shell: Shell, tmp_path: Path
) -> None:
    shell("tracepaper data samples")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    shell("python fit.py")
    answer = shell(
        f"tracepaper replay -c own.toml --data {SAMPLE} "
        "--from 2025-05-30T11:32 --to 2025-05-31 --db own.db"
    )

    # Asked, refused, filled, size and profit, from the record alone.
    record = tmp_path / "own.db"
    ((decided, allowed, by_edge),) = rows(
        record, "SELECT count(*), sum(allowed), sum(refused_by = 'edge') FROM v_decisions"
    )
    account = account_of(record)
    assert (decided, allowed + by_edge) == (748, 748)
    assert f"{decided} bars decided, {allowed} allowed, {account.fills} fills" in answer
    assert f"this run {account.equity:,.2f}" in answer
    assert account.fills > 0
    assert account.largest < 20_200  # a reversal trades twice the 10,000 of a position
    assert f"Most refused: {by_edge} of {decided} bars" in answer
    assert f"{decided} of {decided} decisions follow" in shell("tracepaper verify last --db own.db")

    # Each decision is explained without an error: the last, one that filled, one that was refused.
    newest = (
        "SELECT sequence, open_time_iso, refused_by, mean_return FROM v_decisions {} "
        "ORDER BY sequence DESC LIMIT 1"
    )
    wheres = "", "WHERE sequence IN (SELECT decision_sequence FROM v_fills)", "WHERE NOT allowed"
    for where in wheres:
        ((sequence, time, refused_by, mean),) = rows(record, newest.format(where))
        explained = shell(f"tracepaper explain last:{sequence} --db own.db")
        assert explained == shell(f"tracepaper explain last:{time[:16]} --db own.db")
        assert f"BTCUSDT at {time}: " in explained
        assert ("(allowed)" in explained) is (refused_by is None or refused_by == "")
        assert f"{1e4 * mean:+.1f} bp" in explained
        assert "Bar by bar: the decided bar and the 16 heaviest of 31 before it" in explained
    last = shell("tracepaper explain last --full --db own.db")

    # Its attention, captured anew: the pass is the one that was stored, and the shares those shown.
    ((mean,),) = rows(record, "SELECT mean_return FROM v_decisions ORDER BY sequence DESC LIMIT 1")
    looked = shell("python look.py")
    forecast = float(re.search(r"forecast (\S+)", looked)[1])  # type: ignore[index]
    shares = [float(text) for text in looked.split("looked ")[1].split()]
    assert forecast == pytest.approx(mean, rel=1e-4)
    assert len(shares) == 32
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert all(f"{share:.4f}" in last for share in sorted(shares)[-17:])

    # It sees no later bar.
    probed = shell(
        f"tracepaper lookahead -c own.toml --data {SAMPLE} --bars 700 --probes 1 --seconds 3600"
    )
    assert "nothing differs" in probed
