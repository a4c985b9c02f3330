"""``python -m biogpt``."""

import sys

from biogpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
