"""The command `kdsteps`: see `kdsteps.cli`."""

import signal
import sys

# An interrupt while modules are imported ends the command at once; `main` changes that later.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from kdsteps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
