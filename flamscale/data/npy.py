"""The lock under which headers of .npy arrays are parsed: any thread in; one at a time out."""

import threading

HEADERS = threading.Lock()
"""Held while numpy parses a header, which it does with Python's own parser.

Python 3.11's counts its recursion for all threads together, and so fails, now and then, in two of them at once:
"SystemError: AST constructor recursion depth mismatch" (github.com/python/cpython/issues/106905).
"""
