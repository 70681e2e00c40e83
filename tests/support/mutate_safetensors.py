"""Child process of test_checkpoint.py: loads mutated weights. Any error except CheckpointError is a crash."""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

from bertgen import CheckpointError
from bertgen.checkpoint import load_state


def main(directory: Path, trials: int) -> None:
    limit = 8 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    file = directory / "model.safetensors"
    whole, r, loaded = file.read_bytes(), random.Random(0), 0
    for _ in range(trials):
        data = bytearray(whole)
        for _ in range(r.randint(1, 8)):
            # Half of the mutations hit the header, where the structure is.
            end = 4000 if r.random() < 0.5 else len(data)
            data[r.randrange(end)] = r.randrange(256)
        file.write_bytes(data[: r.randrange(len(data))] if r.random() < 0.2 else data)
        try:
            load_state(directory)
            loaded += 1
        except CheckpointError:
            pass
    print(f"{trials} tried, {loaded} loaded")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
