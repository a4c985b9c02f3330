"""``python -m biogpt``."""

import sys

if __name__ == "__main__":
    try:
        from biogpt.cli import main

        status = main()
    except KeyboardInterrupt:  # during the imports
        status = 130
    sys.exit(status)
