"""The command `kdsteps`: see `kdsteps.cli`."""

import atexit
import os
import signal
import sys

# An interrupt while modules are imported ends the command at once; `main` changes that later.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

_succeeded = False


def _end_at_once() -> None:
    """Skip what Python does last: taking torch apart takes as long as importing a third of it."""
    if _succeeded:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            return  # Python reports it
        os._exit(0)


atexit.register(_end_at_once)  # the first one is called last, after threads have ended

from kdsteps.cli.main import main  # noqa: E402

if __name__ == "__main__":
    status = main()
    _succeeded = status == 0
    sys.exit(status)
