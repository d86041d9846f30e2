"""`python -m segagent`: see segagent/cli.py."""

import sys

from segagent.cli import main

if __name__ == "__main__":
    sys.exit(main())
