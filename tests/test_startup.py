"""Starting a command imports no heavy module that only other commands need."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch._dynamo torch._inductor torch.distributed.tensor sympy huggingface_hub matplotlib rich sacrebleu "
    "transformers"
).split()
RUN = 'from bertgen.cli import main; assert main(["run", "--model", "demo", "Where is the station?", "--quiet"]) == 0'
# Modules of every kind, with activations that have parameters, and calls that add a layer to a loaded model.
LOADS = """
import sys, torch, bertgen
for kind, act in (("Bert", "xielu"), ("Roberta", "prelu"), ("BertGeneration", "gelu")):
    half = getattr(bertgen, kind + "Config")(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
                                             intermediate_size=64, hidden_act=act)
    joint = bertgen.EncoderDecoderConfig.from_encoder_decoder_configs(half, half)
    bertgen.EncoderDecoderModel(joint).save_pretrained(sys.argv[1])
    model = bertgen.EncoderDecoderModel.from_pretrained(sys.argv[1], quantization_config=bertgen.Int4Config(head=True))
    model.dequantize()
    model.decoder.resize_token_embeddings(70)
"""


@pytest.mark.parametrize("command", ["run", "load"])
def test_a_start_imports_no_compiler_and_nothing_of_other_commands(command, tmp_path):
    report = f"import sys; print('heavy:', *sorted({set(HEAVY)!r} & set(sys.modules)))"
    code = f"{RUN if command == 'run' else LOADS}\n{report}"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"
