"""python -m lconv_fast.cli."""

from lconv_fast.cli import main

main()
