"""Entry point of `python -m iris STEP --executor-input JSON`."""

import argparse
import sys

from epos import executor
from epos.errors import EposError
from iris.steps import STEPS

parser = argparse.ArgumentParser(prog="iris")
parser.add_argument("step", choices=STEPS)
parser.add_argument("--executor-input", required=True, metavar="JSON")
args = parser.parse_args()
try:
    executor.run(STEPS[args.step], args.executor_input)
except EposError as error:
    sys.exit(f"iris: {error}")
