"""Compares the tokens of another engine with bertgen's, and excuses differences that rounding explains.

float32 sums differ between libraries and batch sizes. Where two continuations are almost equally probable, either may
win, and the rest of the text differs. So a difference is excused where a plain search over bertgen's logits has such a
tie: at the first differing token of a greedy output, or anywhere in a beam search.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from bertgen.compare import MARGINS
from bertgen.model import EncoderDecoderModel

from .workload import START, Case, Tokens

UNITS = 4 * 2.0**-23  # rounding error of a long sum, relative to its size


@dataclass
class Agreement:
    """Number of compared and of equal outputs; descriptions of those that differ at a tie, and of wrong ones."""

    compared: int = 0
    equal: int = 0
    ties: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ties = f", {len(self.ties)} at a tie" if self.ties else ""
        return f"{self.equal} of {self.compared}{ties}" + (f", {len(self.wrong)} WRONG" if self.wrong else "")


class Judge:
    """Compares outputs with bertgen's; caches the margins of searches.

    Args:
        model: in float32. tie: a difference with a smaller margin is excused.
    """

    def __init__(self, model: EncoderDecoderModel, tie: float = MARGINS["float32"]):
        self.model, self.tie = model, tie
        self._margins: dict[tuple[int, int, tuple[int, ...]], list[float]] = {}

    def compare(self, case: Case, ours: Tokens, theirs: Tokens, judged: bool = True) -> Agreement:
        """Compare outputs up to the requested length. Beam outputs are compared only where both have that length, since
        another length means another search.

        Args:
            judged: False for rounded weights: differences are counted, but no margin is searched for.
        """
        agreement = Agreement()
        for i, (source, length) in enumerate(zip(case.sources, case.lengths)):
            a, b = ours[i], theirs[i]
            if min(len(a), len(b)) < length:
                agreement.compared += 1
                agreement.wrong.append(f"request {i} stopped after {len(a)} and {len(b)} tokens of {length}")
                continue
            if case.beams > 1 and len(a) != len(b):
                continue
            agreement.compared += 1
            first = next((at for at in range(length) if a[at] != b[at]), None)
            if first is None:
                agreement.equal += 1
                continue
            if not judged:
                continue
            margins = self.margins(source, length, case.beams)
            margin = margins[first] if case.beams == 1 else min(margins)
            text = f"request {i} differs at token {first}, margin {margin:.1e}"
            (agreement.ties if margin < self.tie else agreement.wrong).append(text)
        return agreement

    def margins(self, source: list[int], length: int, beams: int) -> list[float]:
        key = length, beams, tuple(source)
        if key not in self._margins:
            self._margins[key] = margins(self.model, source, length, beams)
        return self._margins[key]


@torch.inference_mode()
def margins(model: EncoderDecoderModel, source: list[int], length: int, beams: int) -> list[float]:
    """Margins of a search without a cache: at each step, the score of the last hypothesis kept minus that of the best
    one dropped; with beams, after the last step, the best minus the second. The rounding of a sum is subtracted."""
    device = model.device
    encoded = model.encoder(input_ids=torch.tensor([source], device=device)).last_hidden_state
    tokens = torch.full((1, 1), START, device=device)
    totals, gaps = torch.zeros(1, 1, dtype=torch.float64, device=device), []
    for _ in range(length):
        states = encoded.expand(len(tokens), -1, -1)
        logits = model(encoder_outputs=(states,), decoder_input_ids=tokens).logits[:, -1].double()
        best = (totals + logits.log_softmax(-1)).flatten().topk(beams + 1)
        rounding = UNITS * abs(float(best.values[0])) if beams > 1 else 0.0
        gaps.append(float(best.values[-2] - best.values[-1]) - rounding)
        kept, vocabulary = best.indices[:beams], logits.shape[1]
        tokens = torch.cat((tokens[kept // vocabulary], kept[:, None] % vocabulary), 1)
        totals = best.values[:beams, None]
    if beams > 1:
        gaps.append(float(totals[0] - totals[1]) - rounding)
    return gaps
