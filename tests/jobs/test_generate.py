"""Generation for lines."""

from bertgen.jobs import generate


def test_a_window_suits_the_model(generator, monkeypatch):
    """On a CPU about ten seconds of work; the same for the same options, so that a resumed job finds its windows."""
    assert generate.default_window(generator, {}) == 1024
    monkeypatch.setattr(type(generator.model), "num_parameters", lambda _: 1 << 27)
    assert [generate.default_window(generator, {"num_beams": n}) for n in (1, 2, 4, 5, 100)] == [256, 128, 64, 64, 64]
    assert generate.default_window(generator, {"num_beams": 1, "num_return_sequences": 2, "do_sample": True}) == 128
