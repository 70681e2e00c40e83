"""Search groups: requests that share a search."""

from bertgen.engine import Engine, Request
from tests.support.hostile import raising
from tests.support.made_up_model import Model, alone, options, result


def test_return_sequences_keep_their_places():
    """Each has its own random numbers, whichever ends first."""
    several, one = (options(do_sample=True, temperature=2.0, num_return_sequences=n) for n in (4, 1))
    for number in range(8):
        expected = [alone(Request([5, 6], one, seed=1, number=number + (i << 40)))[0][0] for i in range(4)]
        assert alone(Request([5, 6], several, seed=1, number=number))[0] == expected
        assert len({len(tokens) for tokens in expected}) > 1


def test_a_failing_search_group_fails_only_its_own_requests(monkeypatch):
    """The error is of no single request; requests of other groups succeed."""
    from bertgen.decoding import BeamSearch

    engine, done = Engine(Model()), []
    several = [Request([5 + i], options(min_length=9, num_beams=1 + i % 2), number=i) for i in range(6)]
    expected = {request.number: alone(request) for request in several}
    engine.submit(several, done.append)
    engine.step()
    monkeypatch.setattr(BeamSearch, "_top_candidates", raising(ZeroDivisionError()))
    engine.step()
    assert [type(request.error) for request in done] == [ZeroDivisionError] * 3
    monkeypatch.undo()
    while engine.busy:
        engine.step()
    assert {t.number: result(t) for t in done[3:]} == {i: expected[i] for i in (0, 2, 4)}
