"""`python -m crosstime` is `crosstime`."""

import sys

from crosstime.cli import main

if __name__ == "__main__":
    sys.exit(main())
