"""The report page and its pictures."""

from __future__ import annotations

import dataclasses

import matplotlib.image
from matplotlib.figure import Figure

from bertgen.bench import figures, report, result
from tests.support.benchmarks import make_result, make_row, run_bench


def test_the_page_and_its_pictures_say_what_is_not_to_be_relied_on(doubtful, tmp_path, monkeypatch):
    written, real = [], Figure.text

    def text(self, x, y, words, **how):
        written.extend([words] if words.startswith("NOT TO BE RELIED ON") else [])
        return real(self, x, y, words, **how)

    monkeypatch.setattr(Figure, "text", text)
    quiet = report.write([result.load(doubtful["quiet"])], tmp_path / "quiet").read_text()
    assert "Not to be relied on" not in quiet and 'class="wrong"' not in quiet and not written
    page = report.write([result.load(doubtful[name]) for name in ("before", "short")], tmp_path / "page").read_text()
    assert page.index("Not to be relied on") < page.index("Other engines run the same models"), "it comes first"
    pictures = page.count("<figure>")
    for doubt in ("others kept 2.0 cores busy, times are too long", "stopped after 60 s, cases may be missing"):
        assert page.count(doubt) == 1 + 1 + pictures + 1, "on top, beside the command, at each picture, at the figures"
        assert len(written) == pictures and all(doubt in " ".join(text.split()) for text in written)


def test_a_warning_is_over_the_picture_and_nothing_else_is(doubtful, tmp_path):
    drawn = [figures.drawn([result.load(doubtful[name])], tmp_path / name) for name in ("quiet", "before")]
    assert drawn[0].keys() == drawn[1].keys() == {"overview", "generation"}
    red = lambda image: ((image[..., 0] > 0.5) & (image[..., 1] < 0.1) & (image[..., 2] < 0.1)).sum()  # noqa: E731
    for picture in drawn[0]:
        quiet, busy = (matplotlib.image.imread(paths[picture]) for paths in drawn)
        assert busy.shape[0] > quiet.shape[0] and abs(busy.shape[1] - quiet.shape[1]) < 40, picture
        assert red(busy) > 200 and red(quiet) == 0, picture


def test_the_report_is_one_page_with_pictures(tmp_path, capsys):
    def rows(name, contender, factor, **more):
        seconds = [factor * s for s in (1.0, 1.1, 1.2)]
        return make_row(name, contender, seconds, amount=10.0, unit="token", limit=100.0, **more)

    several = []
    for contender, factor in (("bertgen", 1.0), ("transformers <sdpa>", 2.0)):
        for batch in (1, 4):
            params = {"model": "base", "requests": "mixed", "beams": 4, "count": 8, "batch": batch}
            extra = {"token_p50": 0.01 * factor, "token_p99": 0.02 * factor, "peak": 2 * 10**9}
            several.append(rows("generate", contender, factor, params=params, extra=extra))
            params = {"axis": "batch", "batch": batch}
            several.append(rows("scale", contender, factor * batch, params=params))
        several.append(rows("train", contender, factor, params={"model": "base", "batch": 8}, extra={"peak": 10**9}))
    for contender, factor in (("bertgen", 1.0), ("eager", 2.0), ("compiled", 1.5)):
        extra = {"flop": 1e9, "bytes": 1e8}
        several.append(rows("linear", contender, factor, params={"rows": 4, "n": 8, "k": 8}, extra=extra))
    several.append(make_row(contender="CTranslate2", seconds=(), absent="not installed"))
    several.append(make_row(contender="other", seconds=(), wrong="token 3 differs"))
    result.save(dataclasses.replace(make_result(*several), part="ops"), tmp_path / "a.json")
    assert run_bench("report", tmp_path / "a.json", "--output", tmp_path / "page") == 0
    page = (tmp_path / "page/index.html").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "page/index.html")
    pictures = {path.stem for path in (tmp_path / "page").glob("*.png")}
    assert pictures == set(figures.FIGURES) == set(report.CAPTIONS)
    assert page.count('src="data:image/png;base64,') == len(pictures) and 'src="' not in page.replace('src="data:', "")
    assert "<sdpa>" not in page and "&lt;sdpa&gt;" in page
    assert "CTranslate2: not installed" in page and "token 3 differs" in page


def test_a_picture_has_one_point_for_a_batch():
    """Of two rows the one with more turns; with equally many, the faster one."""
    params = {"model": "base", "requests": "fixed", "beams": 1}
    rows = [
        make_row(params={**params, "batch": batch, "count": count}, seconds=seconds, amount=12.0, unit="token")
        for batch, count, seconds in ((1, 8, [6.0]), (4, 8, [1.0]), (4, 16, [3.0, 3.0]), (4, 17, [4.0, 4.0]))
    ]
    (line,) = figures.batches(rows, []).axes[0].lines
    assert list(line.get_xdata()) == [1, 4] and list(line.get_ydata()) == [2.0, 4.0]


def test_a_report_of_nothing_to_draw(tmp_path):
    result.save(make_result(make_row(seconds=(), absent="not installed")), tmp_path / "a.json")
    assert run_bench("report", tmp_path / "a.json", "--output", tmp_path / "page") == 0
    assert not list((tmp_path / "page").glob("*.png")) and "not installed" in (tmp_path / "page/index.html").read_text()
