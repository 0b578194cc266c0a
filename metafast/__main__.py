"""`python -m metafast` is the `metafast` command."""

from metafast.cli import main

main()
