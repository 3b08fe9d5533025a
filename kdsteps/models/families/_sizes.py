"""The limits of sizes that params.yaml gives: beyond them is a typing error."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Depth = Annotated[int, Field(gt=0, le=2_000)]
Width = Annotated[int, Field(gt=0, le=65_536)]
