"""The decode loop over a decoder of random tables."""

from __future__ import annotations

import pytest
import torch

from tests.support.table_decoder import START, searched


@pytest.mark.parametrize("options", [{}, dict(num_beams=3), dict(num_beams=4, num_beam_groups=2)])
def test_a_prefix_stays_in_front(options):
    output, _ = searched(1, 2, prefix=[START, 5, 6], max_new_tokens=4, **options)
    assert output.sequences[:, :3].tolist() == [[START, 5, 6]] * 2 and output.sequences.shape[1] <= 7


def test_what_is_done_takes_no_more_steps():
    """Sources whose search is over leave; with scores asked for all stay until the last one, as in transformers."""
    options = dict(num_beams=2, max_length=20, early_stopping=True)
    short, table = searched(4, 6, **options, use_cache=False)
    assert len(table.sources) < 12
    kept, table = searched(4, 6, **options, output_scores=True)
    assert len(table.sources) == 12 and torch.equal(kept.sequences, short.sequences)
    assert len(kept.scores) == table.steps
