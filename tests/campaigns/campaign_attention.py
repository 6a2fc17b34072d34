"""Random layers of attention and foreign transformers, held to matrices in float64.

    python tests/campaigns/campaign_attention.py [--layers 2000]

The layers are those of ``tests/support/drawn_layers.py``. Then twelve architectures of
``transformers`` are run by both kernels, whole and padded on either side; their rollouts follow
from the matrices that they store themselves.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from drawn_layers import DrawnLayer
from foreign_models import FORMS, KERNELS, PADDINGS, model_of, tokens_of
from torch import Tensor

from tracepaper.strategies.attention import capture


def check_model(form: str, kernel: str, padding: str) -> None:
    """Hold the rollout of each token that is no padding to the matrices that the model stores."""
    torch.manual_seed(3)
    model: Any = model_of(form, kernel)
    given = tokens_of(padding)
    before = model(**given)[0]
    with capture(model) as captured:
        assert torch.equal(model(**given)[0], before), f"{form} by {kernel} gave another answer"
    model.set_attn_implementation("eager")
    stored: Sequence[Tensor] = model(**given, output_attentions=True).attentions
    unit = torch.eye(stored[0].shape[-1], dtype=torch.float64)
    wanted = unit.expand(len(stored[0]), -1, -1)
    for matrix in stored:
        wanted = (0.5 * unit + 0.5 * matrix.double().mean(dim=1)) @ wanted
    wanted = wanted / wanted.sum(dim=-1, keepdim=True)
    weights = captured.rollout(range(len(unit))).weights["tokens"].double()
    shown = given.get("attention_mask", torch.ones(wanted.shape[:2])).bool()
    error = float((weights - wanted)[shown].abs().max())
    assert error < 1e-6, f"{form} by {kernel}, padding {padding}: {error:.1e}"


def main() -> None:
    """Hold as many layers as asked, and every model, and say what they were."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=2_000)
    parser.add_argument("--from-seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    counted: Counter[str] = Counter()
    for seed in range(given.from_seed, given.from_seed + given.layers):
        try:
            counted[DrawnLayer(seed).check()] += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    models = [(form, kernel, side) for form in FORMS for kernel in KERNELS for side in PADDINGS]
    for form, kernel, side in models:
        check_model(form, kernel, side)
    counts = "; ".join(f"{count:,} {name}" for name, count in sorted(counted.items()))
    print(
        f"{given.layers:,} layers ({counts}) and {len(models)} models of {len(FORMS)} architectures"
        " agree with float64."
    )


if __name__ == "__main__":
    main()
