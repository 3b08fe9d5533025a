"""The command `schema`: print the JSON schema of params.yaml, for editors."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kdsteps.study.schema import study_schema


def add_commands(commands: Any) -> None:
    """Add `schema` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "schema",
        help="print the JSON schema of params.yaml, for editors",
        description="Print the JSON schema of params.yaml: every key, and the options of every "
        "method, model family and kind of data, with types, defaults and descriptions.",
    )
    parser.set_defaults(run=show_schema)


def show_schema(given: argparse.Namespace) -> None:
    """Print the JSON schema of params.yaml."""
    print(json.dumps(study_schema(), indent=2))
