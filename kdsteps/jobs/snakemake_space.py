"""The disk below `.snakemake`: checked when a run begins; one sentence if it fills up later."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

from kdsteps.errors import KdstepsError

FOLDER = Path(".snakemake")
SPACE = 1 << 20  # bytes that Snakemake needs for its locks, records and log
_AGAIN = "free some space and run again (finished results are safe)"


def check_space() -> None:
    """Refuse a run that Snakemake could not record.

    From then on, a disk that fills up is reported in one sentence instead of Snakemake's traceback.

    Raises:
        KdstepsError: Less than `SPACE` is free.
    """
    free = shutil.disk_usage(FOLDER).free
    if free < SPACE:
        raise KdstepsError(f"{FOLDER}: the disk is full ({free // 1024} KiB are free); {_AGAIN}")
    logging.raiseExceptions = False  # or each line that its log has no space for is a traceback
    log = logging.getLogger("snakemake.logging")
    if not any(isinstance(each, _Shortened) for each in log.filters):
        log.addFilter(_Shortened())


class _Shortened(logging.Filter):
    """Says what a traceback about a full disk means."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if f"[Errno {errno.ENOSPC}]" in said or f"[Errno {errno.EDQUOT}]" in said:
            record.msg, record.args = f"{FOLDER}: the disk is full; {_AGAIN}", ()
        return True
