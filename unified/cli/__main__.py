"""`python -m unified.cli`."""

from unified.cli import main

main()
