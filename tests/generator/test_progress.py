"""Progress of a call."""


def test_progress(generator, texts, capsys):
    seen = []
    generator.generate(texts[:4], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 4) for i in range(1, 5)]
    generator.generate(texts[:2], progress=True)
    assert capsys.readouterr().out == ""
