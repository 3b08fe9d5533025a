"""Whether the files of a stage are what params.yaml describes: `python -m kdsteps.verify STAGE`.

DVC runs it after Snakemake, so that a file is never recorded under values it was not made with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdsteps import grid
from kdsteps.artifacts import read_checkpoint_header, read_json, table_metadata
from kdsteps.errors import KdstepsError
from kdsteps.settings import Study, load_study


def verify(study: Study, stage: str) -> int:
    """The number of files of a stage that carry the settings that the study gives them.

    Raises:
        KdstepsError: A file is missing, or carries other settings.
    """
    count = 0
    for rule in grid.OUTPUTS:
        for names in grid.jobs(study, rule) if grid.stage_of(rule) == stage else []:
            wanted = json.loads(grid.settings_text(study, rule, names))
            for path in grid.outputs(rule, names).values():
                count += _verify_file(Path(path), wanted)
    return count


def _verify_file(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a file says what it was made with; raise a sentence if it is something else."""
    if not path.is_file():
        raise KdstepsError(f"{path}: is not there; run snakemake first")
    reader = _READERS.get(path.suffix)
    if reader is None:
        return False
    found = reader(path)
    if found == wanted:
        return True
    said, meant = _first_difference(found, wanted)
    raise KdstepsError(
        f"{path}: was made with {said}, params.yaml says {meant}; delete the file and run snakemake"
    )


_READERS = {
    ".json": lambda path: read_json(path).get("settings"),
    ".parquet": lambda path: table_metadata(path)["settings"],
    ".safetensors": lambda path: read_checkpoint_header(path)["settings"],
}


def _first_difference(found: Any, wanted: Any, place: str = "") -> tuple[str, str]:
    """The first value that two settings do not share, as `section.key: value` each."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                inner = f"{place}.{key}" if place else key
                return _first_difference(found.get(key), wanted.get(key), inner)
    name = place or "settings"
    return f"{name}: {json.dumps(found)}", f"{name}: {json.dumps(wanted)}"


def main(arguments: list[str]) -> int:
    try:
        study = load_study()
        for stage in arguments:
            # DVC wants the folder of every stage, also where a study needs nothing of it
            Path("results", stage).mkdir(parents=True, exist_ok=True)
            print(f"{stage}: {verify(study, stage)} files are what params.yaml describes")
    except KdstepsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
