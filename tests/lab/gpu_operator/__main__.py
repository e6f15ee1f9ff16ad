"""Entry point of `python -m gpu_operator`."""

import sys

from .agent import main

sys.exit(main(sys.argv[1:]))
