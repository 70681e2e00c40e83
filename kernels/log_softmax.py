"""log_softmax: the log-probabilities of the tokens by the scores of one step, s - log(sum over v of exp(s[v])).

Shapes: scores and result [R, V].
"""

from __future__ import annotations

import torch


def log_softmax_reference(scores: torch.Tensor) -> torch.Tensor:
    """Log-softmax of each row of scores [R, V], of any floating dtype."""
    return scores.log_softmax(-1)
