"""`python -m bertgen` is the command `bertgen`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
