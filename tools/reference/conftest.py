"""Puts this folder on the import path, so that the tests run from any directory."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
