"""What a job depends on: the model and the options by which it goes on."""

import json
import shutil

import pytest
import torch

from bertgen import ConfigError, Generator
from bertgen.files.line_formats import Text
from bertgen.jobs import run_file
from bertgen.jobs.generate import OutputFields, format_settings
from bertgen.jobs.metadata import job_metadata
from tests.support.jobs import begun


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_beams": 3}, "num_beams was 2 and is 3"),
        ({"num_beams": 2, "length_penalty": 2.0}, "length_penalty was not set and is 2.0"),
        ({"n_best": 2}, "n_best was 1 and is 2"),
        ({"scores": True}, "scores was false and is true"),
        ({"seed": 4}, "seed was not set and is 4"),
        ({"truncation": True}, "truncation was false and is true"),
        ({"max_batch_size": 4}, "max_batch_size was not set and is 4"),
        ({"window": 4}, "window was 3 and is 4"),
        ({"format": "tsv"}, "format was Text and is Tsv, column was not set and is 1"),
        ({"num_shards": 2}, "shard was 0 of 1 and is 0 of 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_have_changed(tiny_checkpoint, tmp_path, changed, message):
    generator = Generator(tiny_checkpoint)
    begun(generator, tmp_path, b"one\n" * 9, 7, num_beams=2, window=3)
    options = {"num_beams": 2, "window": 3, **changed}
    with pytest.raises(ConfigError, match=f"was begun as another job: {message}; restart"):
        run_file(generator, tmp_path / "in.txt", tmp_path / "out.txt", **options)
    same = {"max_length": generator.model.generation_config.max_length, "overwrite": True, "truncation": False}
    assert run_file(generator, tmp_path / "in.txt", tmp_path / "out.txt", num_beams=2, window=3, **same).before


def test_task_knows_the_model(tiny_checkpoint, tmp_path):
    """Not by its path: a copy is the same, one other weight, piece or rounding is not."""

    def task(generator, **options):
        found = job_metadata(generator, format_settings(Text(OutputFields(1, False))), 10, options)
        assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))
        return found

    def differing(generator):
        return {name for name, value in task(generator).items() if value != first[name]}

    first = task(Generator(tiny_checkpoint))
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    other = Generator(tmp_path / "copy", max_rows=100, max_input_length=20, truncation=True)
    assert differing(other) == {"max_rows", "max_input_length", "truncation"}
    other = Generator(tiny_checkpoint)
    with torch.no_grad():
        next(other.model.parameters())[-1, -1] += 1e-6
    assert differing(other) == {"weights"}
    other = Generator(tiny_checkpoint)
    other.model.config.encoder.layer_norm_eps *= 2
    assert differing(other) == {"weights"}
    assert differing(Generator(tiny_checkpoint, dtype="float16")) <= {"weights", "dtype"}
    other = Generator(tiny_checkpoint)
    other.tokenizer.clean_up_tokenization_spaces = True
    assert differing(other) == {"tokenizer"}
    other = Generator(tiny_checkpoint)
    other.model.generation_config.num_beams = 2
    assert {name for name, value in task(other).items() if value != first.get(name)} == {"num_beams"}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert differing(Generator(tiny_checkpoint)) == {"device"}
    finally:
        torch.set_num_threads(threads)
