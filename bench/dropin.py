"""An accelerated model of transformers beside itself before, and beside bertgen's own class, on a CPU.

    python bench/dropin.py [generate] [train] [--data FILE] [--repeats 5] [--json FILE]

One model of random weights, 6 + 6 layers of hidden size 768, vocabulary 32,000, float32, in transformers; a second
instance of it is accelerated, and bertgen's own class has the same weights. All take turns; ratios are those of each
turn.

`generate`: `model.generate` for a padded batch of 8 sources of WikiSplit, 32 new tokens, greedy and with four beams.
The tokens of all three must be the same.

`train`: forward, backward and a step of AdamW, dropout at 0.1. "real lengths": a batch of 8 pairs of WikiSplit as they
come, padded to the longest. "half padding": 8 pairs one of which is long, so that about half of the positions of both
sides are padding. "no padding": all of one length. The loss without dropout must be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
import workload
from workload import END, PAD, START

from bertgen import accelerate
from bertgen.peers import load_transformers

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "wikisplit" / "test.tsv"
ROWS, NEW = 8, 32
Batch = dict[str, torch.Tensor]


def models(size: workload.Size) -> dict[str, Any]:
    """By name, with the same weights."""
    transformers = load_transformers("the comparison")
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="transformers")
    ours = workload.build(size)
    found = {"bertgen's own class": ours}
    for name in ("transformers", "accelerated"):
        config = transformers.EncoderDecoderConfig(**ours.config.to_dict())
        model = transformers.EncoderDecoderModel(config).eval()
        model.load_state_dict(ours.state_dict(), strict=False)
        for settings in (model.config, model.generation_config):
            settings.pad_token_id, settings.eos_token_id, settings.decoder_start_token_id = PAD, END, START
        found[name] = accelerate(model) if name == "accelerated" else model
    return found


def padded(rows: list[list[int]], padding: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def batch_of(sources: list[list[int]], targets: list[list[int]]) -> Batch:
    ids = padded(sources, PAD)
    return dict(input_ids=ids, attention_mask=(ids != PAD).long(), labels=padded(targets, -100))


def training_batches(data: Path | None, vocabulary: int) -> dict[str, Batch]:
    sources, lengths = workload.texts(data, 64, vocabulary)
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randint(workload.FIRST, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    pairs = [(s, t) for s, t in zip(sources, targets) if len(s) >= 24 and len(t) >= 24]

    def cut(lengths: list[int]) -> Batch:
        """Pairs repeated until they have these lengths."""
        repeated = [((s * n)[:n], (t * n)[:n]) for (s, t), n in zip(pairs, lengths)]
        return batch_of(*map(list, zip(*repeated)))

    return {
        "no padding": cut([64] * ROWS),
        "real lengths": batch_of(*map(list, zip(*pairs[:ROWS]))),
        "half padding": cut([96] + [41] * (ROWS - 1)),
    }


def padding_of(batch: Batch) -> float:
    """The share of positions of both sides that are padding."""
    real = int(batch["attention_mask"].sum()) + int((batch["labels"] != -100).sum())
    return 1 - real / (batch["attention_mask"].numel() + batch["labels"].numel())


def by_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, `repeats` times behind a first that does not count."""
    turns = [{name: machine.seconds(run) for name, run in runs.items()} for _ in range(repeats + 1)][1:]
    return {name: [turn[name] for turn in turns] for name in runs}


def compared(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """For each: the median, and median, least and largest of the ratios base / it."""
    rows = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds[base], times)]
        rows[name] = dict(
            seconds=statistics.median(times), ratio=statistics.median(ratios), least=min(ratios), most=max(ratios)
        )
    return rows


def generate(size: workload.Size, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table of `model.generate`."""
    found = models(size)
    sources, _ = workload.texts(args.data, ROWS, size.vocabulary)
    ids = padded(sources, PAD)
    given = dict(input_ids=ids, attention_mask=(ids != PAD).long(), max_new_tokens=NEW, min_new_tokens=NEW)
    rows = []
    for beams in (1, 4):
        tokens = {name: model.generate(**given, num_beams=beams) for name, model in found.items()}
        wrong = [name for name, rows_ in tokens.items() if not torch.equal(rows_, tokens["transformers"])]
        if wrong:
            raise SystemExit(f"other tokens with {beams} beams: {', '.join(wrong)}")
        runs = {
            name: lambda model=model, beams=beams: model.generate(**given, num_beams=beams)
            for name, model in found.items()
        }
        rows.append(
            dict(
                case=f"{beams} beams" if beams > 1 else "greedy",
                rows=compared(by_turns(runs, args.repeats), "transformers"),
            )
        )
    return rows


def train(size: workload.Size, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table of training steps."""
    found = models(size)
    del found["bertgen's own class"]
    rows, batches = [], training_batches(args.data, size.vocabulary)
    for case, batch in batches.items():
        losses = [float(model(**batch).loss.detach()) for model in found.values()]
        if abs(losses[0] - losses[1]) > 1e-4 * losses[0]:
            raise SystemExit(f"{case}: the losses are {losses}")
    for case, batch in batches.items():
        runs = {}
        for name, model in found.items():
            optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-6)

            def step(model: Any = model, optimizer: Any = optimizer, batch: Batch = batch) -> None:
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            runs[name] = step
        seconds = by_turns(runs, args.repeats)
        rows.append(dict(case=f"{case} ({padding_of(batch):.0%} padding)", rows=compared(seconds, "transformers")))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="generate, train (default: both)")
    parser.add_argument("--data", type=Path, default=DATA if DATA.exists() else None, help="lines of source TAB target")
    parser.add_argument("--size", choices=workload.SIZES, default="base")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    parts = {"generate": generate, "train": train}
    if unknown := set(args.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: the parts are generate and train")
    result: dict[str, Any] = {"environment": machine.environment(), "size": args.size}
    for name, part in parts.items():
        if args.parts and name not in args.parts:
            continue
        result[name] = part(workload.SIZES[args.size], args)
        print(f"\n| {name} | " + " | ".join(result[name][0]["rows"]) + " |")
        print("|---" * (len(result[name][0]["rows"]) + 1) + "|")
        for row in result[name]:
            cells = [
                f"{one['seconds']:.2f} s, {one['ratio']:.2f}x ({one['least']:.2f} to {one['most']:.2f})"
                for one in row["rows"].values()
            ]
            print(f"| {row['case']} | " + " | ".join(cells) + " |", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
