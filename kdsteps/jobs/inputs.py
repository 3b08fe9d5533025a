"""Digests of the files that params.yaml names by path: images and checkpoints.

A changed file under the same name runs its jobs again. Where a file is missing, as for a colleague
who pulled the results without the images, what the result was made from counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from kdsteps.files.input_digests import file_digest
from kdsteps.files.manifest import source_digest
from kdsteps.jobs.provenance import provenance_file, read_provenance
from kdsteps.study.settings import Dataset, Model


def images_digest(dataset: Dataset, outputs: Mapping[str, str]) -> str:
    """The digest of a data set's files; "" if it has none that can change.

    Args:
        outputs: Of the job that prepares it.

    Raises:
        KdstepsError: A file cannot be read.
    """
    found = source_digest(dataset.kind, dataset.options)
    return "" if found == dataset.kind else found or _recorded(outputs, "source")


def checkpoint_digest(model: Model) -> str | None:
    """The digest of the checkpoint that a network starts from; None if there is none.

    Returns:
        "" if the file is missing and nothing tracks it.

    Raises:
        KdstepsError: The file cannot be read.
    """
    path = model.options.get("checkpoint")
    return file_digest(str(path)) if path else None


def weights_digest(checkpoint: str | None, outputs: Mapping[str, str]) -> str:
    """What a job has as the digest of its checkpoint; "" if it has none.

    Args:
        checkpoint: As `checkpoint_digest` returns it.
        outputs: Of the job, whose provenance counts where the checkpoint is missing.
    """
    return "" if checkpoint is None else checkpoint or _recorded(outputs, "weights")


def _recorded(outputs: Mapping[str, str], name: str) -> str:
    """A setting that a result was made with; "" if it has none."""
    known = read_provenance(provenance_file(outputs))
    return str(json.loads(known.settings).get(name, "")) if known is not None else ""
