"""`python -m minicpm` is the `minicpm` command."""

import sys

from minicpm.cli.main import main

sys.exit(main())
