"""The command `kdsteps`: see `kdsteps.cli`."""

import sys

from kdsteps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
