"""The C++ sources compile as standard C++17: extensions of a compiler or a system are used under a guard only."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.rglob("*") if path.suffix in (".cpp", ".h"))

# Tokens and headers that some compiler does not have, most of which GCC accepts even with -pedantic-errors.
EXTENSIONS = re.compile(
    r"__builtin_|__attribute__|__restrict|__int128|__typeof|\basm\b|\bvector_size\b|_mm\d*_|__m\d+|#\s*pragma (?!once)|"
    r"_Pragma|__declspec|__forceinline|\bssize_t\b|\bu_?int\b|\bulong\b|\bM_PI\b|\balloca\b|\bpthread_|\bdlsym\b|"
    r"#\s*include <(?:\w*intrin|dlfcn|unistd|pthread|windows|sys/\w+)\.h>"
)

# Macros that are defined where the compiler is known to have what a branch uses, and those of Windows, where the other
# branch is for everything else.
GNU = {"BERTGEN_GNU", "BERTGEN_X86", "__GNUC__", "__clang__"}
WINDOWS = {"_MSC_VER", "_WIN32"}


def unguarded(text):
    """The lines of a source that have an extension outside of the branches for certain compilers or systems."""
    found = []
    open_ifs = []  # of each: whether the present branch is guarded, whether the later branches are
    for number, line in enumerate(re.sub(r'"(?:[^"\\\n]|\\.)*"|//.*', "", text).splitlines(), start=1):
        directive = re.match(r"\s*#\s*(ifdef|ifndef|if|elif|else|endif)\b(.*)", line)
        if directive is None:
            if EXTENSIONS.search(line) and not any(now for now, _ in open_ifs):
                found.append(f"{number}: {line.strip()}")
            continue
        word, condition = directive.groups()
        named = re.findall(r"(!?)\s*(?:defined\s*\(?\s*)?(\w+)", ("!" if word == "ifndef" else "") + condition)
        has = any(("", macro) in named for macro in GNU)
        windows = any(macro in WINDOWS for _, macro in named)
        if word.startswith("if"):
            open_ifs.append((has or windows, windows))
        elif word == "endif":
            open_ifs.pop()
        else:
            _, later = open_ifs.pop()
            open_ifs.append((has or windows or later, windows or later))
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_extensions_are_guarded(source):
    assert unguarded((CSRC / source).read_text(encoding="utf-8")) == []


def test_a_guard_is_seen():
    assert unguarded("#if defined(BERTGEN_GNU)\n__builtin_trap();\n#else\n__builtin_trap();\n#endif\n") == [
        "4: __builtin_trap();"
    ]
    assert unguarded("#if !defined(__GNUC__)\n__builtin_trap();\n#endif\nssize_t n;") == [
        "2: __builtin_trap();",
        "4: ssize_t n;",
    ]
    assert unguarded("#ifdef _WIN32\n__declspec(dllexport)\n#else\n__attribute__((used))\n#endif\n") == []


EXTENDED = pytest.param([], marks=pytest.mark.long, id="extended")  # the build of the extension compiles it, too


@pytest.mark.parametrize("definitions", [pytest.param(["-DBERTGEN_STANDARD_CPP"], id="standard"), EXTENDED])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_the_sources_compile(compiler, definitions):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    sources = [source for source in SOURCES if source.endswith(".cpp")]
    python = ["-isystem", sysconfig.get_path("include")]
    command = [compiler, "-std=c++17", "-pedantic-errors", "-fsyntax-only", *definitions, *python, *sources]
    run = subprocess.run(command, cwd=CSRC, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
