"""The kernels. In a checkout their sources lie in the folder kernels/ beside bertgen/; a wheel has them here."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    cpp: Any  # a module in a folder where mypy does not look

_here = Path(__file__).parent
if not any(path.name != "__init__.py" for path in _here.glob("*.py")):
    __path__.append(str(_here.parents[1] / "kernels"))
