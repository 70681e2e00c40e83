"""Compile every kernel for sm_80, sm_90 and sm_100 without a device, and say what came out.

    python bench/offline.py [--kernel NAME] [--json FILE] [--check FILE] [--sass]

Prints registers, spills, shared memory and counts of SASS instructions of each variant; for a hot loop, instructions
per score or weight. Exits with 1 where a variant spills, takes more shared memory than a program may have, lacks an
instruction it should have, or (--check) needs more registers or shared memory than a committed table says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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


def compiled(variant: Any, arch: int, show: bool = False) -> dict[str, Any]:
    """Facts about one variant, from the tools in the triton wheel."""
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
        **{name: count for name, count in counts.items() if count},
    }
    if variant.per is not None:
        what, many = variant.per
        facts[f"instructions per {what}"] = round(hot_loop(sass) * 32 * variant.num_warps / many, 2)
    return facts


def hot_loop(sass: str) -> int:
    """Instructions of the largest innermost loop: between a backward branch and its target."""
    place, labels, found = 0, {}, []
    for line in sass.splitlines():
        if match := re.match(r"\s*\.(L_x_\d+):", line):
            labels[match[1]] = place
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            place += 1
            branch = re.search(r"\bBRA.*`\(\.(L_x_\d+)\)", line)
            if branch and branch[1] in labels and place - labels[branch[1]] > 1:
                found.append((labels[branch[1]], place))
    innermost = [(a, b) for a, b in found if not any((c, d) != (a, b) and a <= c and d <= b for c, d in found)]
    return max((b - a for a, b in innermost), default=place)


def problems(variant: Any, arch: int, facts: dict[str, Any]) -> list[str]:
    """What a variant must not be."""
    from bertgen.kernels.tuning import SHARED_BYTES

    found = []
    if facts["spills"]:
        found.append(f"{facts['spills']} spills")
    if facts["shared"] > SHARED_BYTES[arch]:
        found.append(f"{facts['shared']} bytes of shared memory, {SHARED_BYTES[arch]} are there")
    found += [f"no {name}" for name in variant.present.get(arch, ()) if not facts.get(name)]
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", help="one operator only")
    parser.add_argument("--json", type=Path, help="write the table to a file")
    parser.add_argument("--check", type=Path, help="compare with such a file")
    parser.add_argument("--sass", action="store_true", help="print the machine code")
    args = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET was set: ignored, since the interpreter compiles nothing", file=sys.stderr)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # never an old one
        from bertgen.kernels.all_cases import CHECKS

        table: dict[str, Any] = {}
        bad = 0
        for op, check in CHECKS.items():
            if args.kernel not in (None, op):
                continue
            for variant in check.variants:
                for arch in ARCHITECTURES:
                    name = f"{op}/{variant.name}/sm_{arch}"
                    facts = compiled(variant, arch, args.sass)
                    wrong = problems(variant, arch, facts)
                    table[name] = facts
                    print(name, *(f"{k}={v}" for k, v in facts.items()), *(f"<-- {w}" for w in wrong), flush=True)
                    bad += bool(wrong)
    import triton

    if args.check:
        saved = json.loads(args.check.read_text())
        known = saved["kernels"]
        if saved["triton"] != triton.__version__:
            print(f"not compared with {args.check}: that is of triton {saved['triton']}, this is {triton.__version__}")
        for name, facts in table.items() if saved["triton"] == triton.__version__ else ():
            for what in ("registers", "shared"):
                if name not in known or facts[what] > known[name][what]:
                    print(f"{name}: {what} {facts[what]}, the table has {known.get(name, {}).get(what)}")
                    bad += 1
    if args.json:
        args.json.write_text(json.dumps({"triton": triton.__version__, "kernels": table}, indent=1) + "\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
