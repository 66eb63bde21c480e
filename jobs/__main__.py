"""`python -m jobs` is `asyrp`: for a process that starts another with the same Python."""

from jobs.cli.app import main

main()
