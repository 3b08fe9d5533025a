"""Digests of the files that params.yaml names by path: images and checkpoints.

A changed file under the same name runs its jobs again. Where a file is missing, as for a colleague
who pulled the results without the images, what the result was made from counts.
"""

from __future__ import annotations

import json

from kdsteps.files.input_digests import file_digest
from kdsteps.files.manifest import source_digest
from kdsteps.jobs.recorded import record_of
from kdsteps.study.settings import Dataset, Model


def images_digest(dataset: Dataset, result: str) -> str:
    """The digest of a data set's files; "" if it has none that can change.

    Args:
        result: A file of the job that prepares it.

    Raises:
        KdstepsError: A file cannot be read.
    """
    found = source_digest(dataset.kind, dataset.options)
    return "" if found == dataset.kind else found or _recorded(result, "source")


def weights_digest(model: Model, result: str) -> str:
    """The digest of the checkpoint that a network starts from; "" if there is none.

    Args:
        result: A file of the job that reads it.

    Raises:
        KdstepsError: The file cannot be read.
    """
    path = model.options.get("checkpoint")
    return (file_digest(str(path)) or _recorded(result, "weights")) if path else ""


def _recorded(result: str, name: str) -> str:
    """What Snakemake's record of a result has for a setting; "" if it has none."""
    record = record_of(result)
    if record is None or record.settings is None:
        return ""
    return str(json.loads(record.settings).get(name, ""))
