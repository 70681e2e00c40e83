"""Agreement of tokens: differences at ties."""

from __future__ import annotations

import pytest

from bertgen.bench import agreement, contenders, workload
from tests.support.benchmarks import SMOKE


@pytest.mark.parametrize("beams", [1, 4])
def test_a_difference_is_excused_at_a_tie_only(beams):
    """`Judge` searches for margins only where outputs differ; they are those of bertgen's logits."""
    model = SMOKE.build()
    case = workload.Case("fixed", beams, [[7, 8, 9]], [6])
    (ours,) = contenders.Bertgen(model).run(case.sources, case.lengths, beams, 1)
    other = [*ours[:4], ours[4] ^ 1, ours[5]]
    margins = agreement.margins(model, case.sources[0], 6, beams)
    assert len(margins) == 6 + (beams > 1) and all(margin > -1e-3 for margin in margins)
    judge = agreement.Judge(model)
    assert judge.compare(case, [ours], [[*ours, 99][: 6 + (beams == 1)]]) == agreement.Agreement(1, 1)
    assert len(judge.compare(case, [ours], [other]).wrong) == 1
    unjudged = judge.compare(case, [ours], [other], judged=False)
    assert (unjudged.compared, unjudged.equal, unjudged.wrong) == (1, 0, []), "rounded weights may differ"
    judge.tie = margins[4] + 1e-6 if beams == 1 else min(margins) + 1e-6
    found = judge.compare(case, [ours], [other])
    assert (found.compared, found.equal, len(found.ties), found.wrong) == (1, 0, 1, [])


def test_outputs_of_beams_that_end_elsewhere_are_not_compared():
    case = workload.Case("mixed", 4, [[7], [8]], [2, 3])
    judge = agreement.Judge(SMOKE.build())
    assert judge.compare(case, [[5, 6], [5, 6, 7]], [[8, 9, 9], [5, 6, 7]]) == agreement.Agreement(1, 1)
