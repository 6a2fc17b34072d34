"""Answers a task by alphalens-reloaded: correlations, means by quantile and spreads by horizon."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
from alphalens import performance, utils


def main(task: Path, answer: Path) -> None:
    given = json.loads(task.read_text(encoding="utf-8"))
    times = pd.to_datetime(given["times_ms"], unit="ms", utc=True)
    prices = pd.DataFrame(given["prices"], index=times, columns=given["symbols"])
    column = pd.DataFrame(given["column"], index=times, columns=given["symbols"])
    factor = column.stack()  # noqa: PD013 - an index of two levels
    factor.index.names = ["date", "asset"]
    data = utils.get_clean_factor_and_forward_returns(
        factor, prices, quantiles=5, periods=given["horizons"], filter_zscore=None, max_loss=1.0
    )
    names = utils.get_forward_returns_columns(data.columns)
    ic = performance.factor_information_coefficient(data)
    means, _ = performance.mean_return_by_quantile(data, demeaned=True)
    daily, _ = performance.mean_return_by_quantile(data, by_date=True, demeaned=True)
    spread, _ = performance.compute_mean_returns_spread(daily, 5, 1)
    result = [
        {
            "ic": float(ic[name].mean()),
            "means": [float(value) for value in means[name]],
            "spread": float(spread[name].mean()),
        }
        for name in names
    ]
    answer.write_text(json.dumps({"horizons": result}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
