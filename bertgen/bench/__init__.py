"""The benchmarks. In a checkout their sources lie in the folder bench/ beside bertgen/; a wheel has them here."""

from pathlib import Path

_here = Path(__file__).parent
if not any(path.name != "__init__.py" for path in _here.glob("*.py")):
    __path__.append(str(_here.parents[1] / "bench"))
