"""`python -m bertgen` is the command `bertgen`."""

import sys

from .cli import main

sys.exit(main())
