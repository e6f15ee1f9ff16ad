"""Entry point of `python -m epos`."""

import sys

from epos.cli import main

sys.exit(main())
