"""``python -m dpa1``."""

from dpa1.cli.main import main

main()
