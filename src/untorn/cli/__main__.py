"""``python -m untorn.cli``: the same as the ``untorn`` command."""

import sys

from untorn.cli import main

if __name__ == "__main__":
    sys.exit(main())
