"""`bertgen train`: from flags to a training, and its exit codes."""

from bertgen import cli
from tests.support.checkpoints import FIRST


def test_a_training_without_an_end_names_the_flags_that_set_one(capsys):
    assert cli.main(["train", "--train", "x", "--output", "y"]) == 2
    said = "no end: give --epochs, --steps, --max-minutes or --decay-steps\n"
    assert capsys.readouterr().err == f"bertgen: error: {said}"


def test_train_names_an_output_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("one\teins\n")
    (tmp_path / "file").write_text("mine")
    for output, reason in (("file", "File exists"), ("file/under", "Not a directory")):
        code = cli.main(
            ["train", "--train", f"{tmp_path}/train.tsv", "--output", f"{tmp_path}/{output}", "--steps", "1"]
        )
        assert code == 3 and f"error: {tmp_path}/{output} cannot be written: {reason}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_train(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("".join(f"{a} {b}\t{FIRST[a]} {FIRST[b]}\n" for a in FIRST for b in FIRST))
    (tmp_path / "dev.tsv").write_text("one two\teins zwei\n")
    arguments = "--vocab-size 60 --layers 1 --hidden 16 --heads 2 --intermediate 16 --positions 16 --max-length 16"
    arguments += f" --train {tmp_path}/train.tsv --dev {tmp_path}/dev.tsv --output {tmp_path}/model --steps 2 --quiet"
    assert cli.main(["train", *arguments.split(), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(
        f"ended at update 2 (steps); checkpoints in {tmp_path}/model\nbest at update 2: loss "
    )
    assert cli.main(["train", *arguments.split()]) == 2
    assert "--resume continues it, or take another folder" in capsys.readouterr().err
    assert cli.main(["train", *arguments.replace("--layers 1", "--layers 0").split()]) == 2
    assert "--layers 0: must be at least 1" in capsys.readouterr().err


def test_train_that_a_signal_ends(tmp_path, capsys, monkeypatch):
    from bertgen.trainer import Trainer, TrainingResult

    for name, code in (("SIGINT", 130), ("SIGTERM", 143)):
        result = TrainingResult(name, 7, None, 0, tmp_path)
        monkeypatch.setattr(Trainer, "train", lambda _, result=result: result)
        assert cli.main(["train", "--train", "x", "--output", "y", "--steps", "1"]) == code
        assert (
            capsys.readouterr().out == f"ended at update 7 ({name}); checkpoints in {tmp_path}\n--resume continues it\n"
        )
