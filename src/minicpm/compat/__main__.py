"""`python -m minicpm.compat`."""

from __future__ import annotations

import sys

from minicpm.compat import main

if __name__ == "__main__":
    sys.exit(main())
