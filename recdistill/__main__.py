"""`python -m recdistill` is `recdistill`."""

from recdistill.cli import main

main()
