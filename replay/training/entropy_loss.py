"""An auxiliary loss that makes the entropy of attention say how wrong a row is.

The rule is docs/models.md, L52.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch

from tracepaper.strategies.attention.entropy import (
    row_confidence,
    trained_entropy,
    visible_counts,
)
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.flash import FlashNetwork

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.networks.architecture import Network
    from tracepaper.strategies.networks.flash import Trace

_TINY: Final = 1e-12
_CUT: Final = 3.0


def traced(network: Network) -> FlashNetwork:
    """Return *network*, whose attention can be trained by its entropy; refuse any other."""
    if not isinstance(network, FlashNetwork) or network.config.checkpointing:
        raise ConfigInvalid(
            "training.entropy_weight is for the kind flash without checkpointing; leave it out."
        )
    return network


def trained_confidence(traces: Sequence[Trace], mask: Mask) -> Tensor:
    """Return each row's confidence, the mean over layers and heads: [batch, time]."""
    time = traces[0].query.shape[2]
    visible = visible_counts(time, mask)
    shares = []
    for one in traces:
        entropy = trained_entropy(one.query.float(), one.key.float(), one.logsumexp, mask)
        shares.append(row_confidence(entropy, visible).mean(dim=1))
    return torch.stack(shares).mean(dim=0)


def confidence_loss(confidence: Tensor, each: Tensor, weights: Tensor) -> Tensor:
    """Return the correlation of *confidence* [batch, time] with the losses of its rows.

    *each* are losses [task, batch, time, horizon], which are taken as given: the gradient reaches
    the attention by its entropy alone. *weights* [batch, time, horizon] are above 0 where a label
    is. Each loss is standardised over its rows and cut at three deviations, and a row has the mean
    of them. It is 0 where nothing varies.
    """
    used = (weights > 0).all(dim=-1)
    given = each.detach()[:, used]  # [task, row, horizon]
    if given.shape[1] < 2:
        return confidence.new_zeros(())
    centred = given - given.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    wrong = (centred / spread.clamp_min(_TINY)).clamp(-_CUT, _CUT).mean(dim=(0, 2))  # [row]
    sure = confidence[used]
    sure = sure - sure.mean()
    wrong = wrong - wrong.mean()
    scale = (sure.square().mean() * wrong.square().mean()).clamp_min(_TINY**2).sqrt()
    return (sure * wrong).mean() / scale
