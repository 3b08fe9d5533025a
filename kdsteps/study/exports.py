"""Which runs of a study are exported: the section `export` of params.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdsteps.errors import nearest
from kdsteps.study.settings import Export

BEST = "best"
"""The export of the run of a pair that is best on the validation images."""


def exported_runs(
    export: Export, pairs: Iterable[str], methods: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, str]]:
    """Every export as its pair and its run, which is `best` or `method/seed`."""
    runs = [BEST, *(f"{method}/{seed}" for method in methods for seed in seeds)]
    return [(pair, run) for pair in pairs for run in runs if _is_wanted(export, pair, run)]


def export_problem(
    export: Export, pairs: Iterable[str], methods: Sequence[str], seeds: Sequence[int]
) -> str | None:
    """The first contradiction, as `key is value; what would be right`, or None."""
    if export.int8 and "onnx" not in export.formats:
        return "int8 is true and formats has no onnx, from which int8 is made; add onnx"
    known = [BEST, *methods]
    known += [f"{pair}/{method}/{seed}" for pair in pairs for method in methods for seed in seeds]
    for name in () if isinstance(export.runs, str) else export.runs:
        if name not in known:
            hint = nearest(name, known if "/" in name else known[: 1 + len(methods)])
            return f"runs has {name!r}, which is neither a method nor a run{hint}"
    return None


def _is_wanted(export: Export, pair: str, run: str) -> bool:
    if isinstance(export.runs, str):
        return export.runs == (BEST if run == BEST else "all")
    method = run.rpartition("/")[0]
    return run in export.runs if run == BEST else bool({method, f"{pair}/{run}"} & {*export.runs})
