"""`python -m collapsewatch`."""

from .cli import main

main()
