"""Compile every kernel for sm_80, sm_90 and sm_100 without a device, and print facts about the machine code.

    python -m bertgen.bench.offline [--kernel NAME] [--all] [--write] [--table FILE] [--markdown] [--sass]
        [--processes N]

Prints registers, spills, shared memory and counts of SASS instructions of each variant, and instructions of its hot
loops per score or weight. The exit code is 1 where a variant spills, exceeds the shared memory of a program, lacks a
required instruction, multiplies an index in 32 bits, or differs from the committed table.

The table has these facts for several versions of triton, with a digest of the sources of each variant. Variants with
unchanged sources are not compiled again, except for a twentieth of them, another one every day; --all compiles all.
--write puts the facts into the table: its diff shows what became worse.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bertgen.errors import BackendError
from bertgen.optional_imports import load_triton

TABLE = Path(__file__).parent / "results" / "offline.json"
SHARE = 20  # one in SHARE variants is compiled although its sources did not change
ARCHITECTURES = (80, 90, 100)
SASS = {
    "LDG.128": r"\bLDG\.E\S*\.128",
    "LDGSTS": r"\bLDGSTS",
    "LDGSTS.128": r"\bLDGSTS\.\S*128",
    "STG.128": r"\bSTG\.E\S*\.128",
    "HMMA": r"\bHMMA",
    "HGMMA": r"\bHGMMA",
    "UTCHMMA": r"\bUTC\w*MMA",
    "MUFU": r"\bMUFU",
}
SPIN = 24  # instructions; shorter loops wait for a barrier
HOT = 0.25  # a loop is hot with at least this share of the instructions of the largest loop


def compiled(variant: Any, arch: int, show: bool = False) -> dict[str, Any]:
    """Compile one variant and return facts about it, from the tools in the triton wheel."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    aligned = [
        name
        for name, kind in variant.signature.items()
        if (kind.startswith("*") or kind in ("i32", "i64")) and name not in variant.unaligned
    ]
    source = ASTSource(
        variant.kernel,
        signature=signature,
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        sass = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    if show:
        print(sass)
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    counts = {name: len(re.findall(pattern, sass)) for name, pattern in SASS.items()}
    facts: dict[str, Any] = {
        "registers": int(used["REG"]),
        "shared": kernel.metadata.shared,
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)) + int(used["LOCAL"]),
        "narrow": len(narrow_products(kernel.asm["ttir"])),
        **{name: count for name, count in counts.items() if count},
    }
    if variant.per is not None:
        unit, amount = variant.per
        facts[f"instructions per {unit}"] = [round(n * 32 * variant.num_warps / amount, 2) for n in hot_loops(sass)]
    return facts


def hot_loops(sass: str) -> list[int]:
    """Instructions of the innermost loops, smallest first: between a backward branch and its target.

    Loops much smaller than the largest are left out. A program without loops counts as one loop.
    """
    place, labels, ranges = 0, {}, []
    for line in sass.splitlines():
        if match := re.match(r"\s*\.(L_x_\d+):", line):
            labels[match[1]] = place
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            place += 1
            branch = re.search(r"\bBRA.*`\(\.(L_x_\d+)\)", line)
            if branch and branch[1] in labels and place - labels[branch[1]] > 1:
                ranges.append((labels[branch[1]], place))
    innermost = [(a, b) for a, b in ranges if not any((c, d) != (a, b) and a <= c and d <= b for c, d in ranges)]
    sizes = sorted(b - a for a, b in innermost if b - a >= SPIN) or [place]
    return [size for size in sizes if size >= HOT * sizes[-1]]


def narrow_products(ttir: str) -> list[str]:
    """32-bit products of an index and a non-constant, which would overflow from 2^31 elements on.

    An index is any value that does not depend on the kernel's arguments and constants alone.
    """
    constant: set[str] = set()
    scalars = set(re.findall(r"(%\w+): (?:i32|i64|f32|!tt\.ptr)", ttir))
    matches = []
    for line in ttir.splitlines():
        match = re.match(r"\s*(%[\w-]+)(?::\d+)? = \"?([\w.]+)\"?(.*?)(?: loc\(.*)?$", line)
        if match is None:
            continue
        name, operation, rest = match.groups()
        operands = set(re.findall(r"%[\w-]+", rest))
        if operation == "arith.constant" or (operands and operands <= constant):
            constant.add(name)
        elif operands <= constant | scalars and not re.match(
            r"tt\.(load|get_program_id|make_range|atomic|descriptor)", operation
        ):
            scalars.add(name)
        narrow = rest.endswith((": i32", "xi32>"))
        if operation == "arith.muli" and narrow and not operands & constant and not operands <= scalars:
            matches.append(line.strip())
    return matches


def problems(variant: Any, arch: int, facts: dict[str, Any]) -> list[str]:
    """Problems of a compiled variant; empty where it has none."""
    from bertgen.kernels.tuning import SHARED_BYTES

    reasons = []
    if facts["spills"]:
        reasons.append(f"{facts['spills']} spills")
    if facts["narrow"]:
        reasons.append(f"{facts['narrow']} products of an index in 32 bits")
    if facts["shared"] > SHARED_BYTES[arch]:
        reasons.append(f"{facts['shared']} bytes of shared memory, {SHARED_BYTES[arch]} are there")
    reasons += [f"no {name}" for name in variant.present.get(arch, ()) if not facts.get(name)]
    return reasons


def digest(variant: Any, arch: int) -> str:
    """Digest of what a variant depends on besides the compiler: its file, the files it imports, its constants."""
    files, waiting = {}, [Path(variant.kernel.fn.__code__.co_filename)]
    while waiting:
        path = waiting.pop()
        if path not in files and path.stem != "tuning":  # constants of the variant include the tiles
            files[path] = path.read_text()
            imported = re.findall(r"^from \.(\w+) import", files[path], re.MULTILINE)
            waiting += [path.with_name(f"{name}.py") for name in imported]
    named = sorted(variant.constants.items()), sorted(variant.signature.items()), sorted(variant.unaligned)
    options = repr((named, variant.num_warps, variant.num_stages, variant.per, arch))
    text = "".join(files[path] for path in sorted(files)) + options
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sampled(name: str) -> bool:
    """Whether a variant with unchanged sources is compiled today."""
    place = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    return (place + datetime.date.today().toordinal()) % SHARE == 0


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _job(job: tuple[str, int, int, bool]) -> tuple[str, dict[str, Any], list[str]]:
    from bertgen.kernels.all_cases import CHECKS

    op, index, arch, show = job
    variant = CHECKS[op].variants[index]
    facts = compiled(variant, arch, show)
    return f"{op}/{variant.name}/sm_{arch}", facts | {"sources": digest(variant, arch)}, problems(variant, arch, facts)


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown: a row for each variant, in a column for each architecture registers / shared bytes."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for name, facts in table.items():
        variant, arch = name.rsplit("/sm_", 1)
        rows.setdefault(variant, {})[int(arch)] = facts
    lines = [
        "| variant | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |",
        "|---" * (1 + len(ARCHITECTURES)) + "|",
    ]
    for variant, by_arch in rows.items():
        cells = []
        for arch in ARCHITECTURES:
            facts = by_arch.get(arch)
            if facts is None:
                cells.append("")
                continue
            loops = next((value for name, value in facts.items() if name.startswith("instructions")), [])
            cells.append(
                f"{facts['registers']}, {facts['shared']}" + (", " + " / ".join(map(str, loops)) if loops else "")
            )
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", help="one operator only")
    parser.add_argument("--all", action="store_true", help="also compile variants with unchanged sources")
    parser.add_argument("--write", action="store_true", help="write the facts into the table")
    parser.add_argument("--table", type=Path, default=TABLE, help="use another table than bench/results/offline.json")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown at the end")
    parser.add_argument("--sass", action="store_true", help="print the machine code")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="number of parallel processes")
    args = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET was set: ignored, since the interpreter compiles nothing", file=sys.stderr)
    tables = json.loads(args.table.read_text()) if args.table.exists() else {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # an empty cache: compile everything
        try:
            triton = load_triton("compiling kernels")
        except BackendError as error:
            raise SystemExit(str(error)) from error
        from bertgen.kernels.all_cases import CHECKS

        known = tables.get(triton.__version__)
        if known is None and not args.write:
            print(f"{args.table} has nothing for triton {triton.__version__}: all are compiled, none compared")
        rows: dict[str, Any] = {}
        jobs = []
        for op, check in CHECKS.items():
            for index, variant in enumerate(check.variants) if args.kernel in (None, op) else ():
                for arch in variant.architectures:
                    name = f"{op}/{variant.name}/sm_{arch}"
                    rows[name] = (known or {}).get(name)
                    same = rows[name] is not None and rows[name]["sources"] == digest(variant, arch)
                    if not same or args.all or args.sass or sampled(name):
                        jobs.append((op, index, arch, args.sass))
        bad = 0
        with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
            for name, facts, wrong in pool.imap(_job, jobs):
                if known is not None and not args.write and facts != rows[name]:
                    wrong.append(f"the table has {rows[name]}: see that it is no worse, then --write")
                rows[name] = facts
                print(name, *(f"{k}={v}" for k, v in facts.items()), *(f"<-- {w}" for w in wrong), flush=True)
                bad += bool(wrong)
    stale = sorted(name for name in (known or {}) if name not in rows and args.kernel in (None, name.split("/")[0]))
    if args.write:
        others = {name: facts for name, facts in (known or {}).items() if name not in rows and name not in stale}
        order = {op: place for place, op in enumerate(CHECKS)}
        merged = dict(sorted({**others, **rows}.items(), key=lambda item: order[item[0].split("/")[0]]))
        tables[triton.__version__] = merged
        args.table.write_text(_lines(dict(sorted(tables.items()))))
    elif stale:
        print(f"{args.table} has {', '.join(stale)}, which are no more: --write")
        bad += 1
    if args.markdown:
        print(markdown(rows))
    print(f"triton {triton.__version__}: {len(jobs)} of {len(rows)} compiled, {bad} not as they should be")
    return bool(bad)


def _lines(tables: dict[str, dict[str, Any]]) -> str:
    """JSON with one line per variant."""
    parts = []
    for version, table in tables.items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in table.items())
        parts.append(f" {json.dumps(version)}: {{\n{rows}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
