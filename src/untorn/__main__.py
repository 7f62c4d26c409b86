"""``python -m untorn``: the same as the ``untorn`` command."""

from untorn.cli import main

if __name__ == "__main__":
    main()
