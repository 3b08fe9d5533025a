"""The command `schema`: print the JSON schema of params.yaml, for editors."""

from __future__ import annotations

import argparse
import json


def show_schema(given: argparse.Namespace) -> None:
    """Print the JSON schema of params.yaml."""
    from kdsteps.study.schema import study_schema

    print(json.dumps(study_schema(), indent=2))
