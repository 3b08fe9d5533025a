"""How to cite and repeat a study, and where the students of the best method are."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from kdsteps.jobs import graph
from kdsteps.report.probes import PairProbes, probe_metrics
from kdsteps.report.results import Results
from kdsteps.report.tables import PairTable

PAPERS = Path(__file__).with_name("papers.csv")
SOFTWARE = {
    "title": "kdsteps: knowledge distillation you can trust and repeat",
    "author": "{The kdsteps authors}",
}
"""As in CITATION.cff, which does not come with the package."""


@dataclass(frozen=True)
class StudentFile:
    """One student of the best method.

    Attributes:
        path: In the study's folder.
        link: From the page.
        accuracy: On the test images.
        validation: Best validation accuracy; None where nothing was validated.
        highest: Whether no other seed has a higher validation accuracy.
    """

    seed: int
    path: str
    link: str
    accuracy: float
    validation: float | None
    highest: bool


def kdsteps_version() -> str | None:
    """The installed version; None where the package is not installed."""
    try:
        return version("kdsteps")
    except PackageNotFoundError:
        return None


def student_files(table: PairTable, runs: pd.DataFrame) -> list[StudentFile]:
    """The weights of the best method's students on one pair, by seed.

    Args:
        runs: `Results.runs`.
    """
    mine = runs[(runs["pair"] == table.pair) & (runs["method"] == table.best.method)]
    validated = mine.set_index("seed")["best_validation_accuracy"].astype(float)
    page = os.path.dirname(graph.outputs("report", {})["page"])
    found = []
    for seed, accuracy in sorted(table.best.values.items()):
        names = {"pair": table.pair, "method": table.best.method, "seed": str(seed)}
        path = graph.outputs("distil", names)["model"]
        known = pd.notna(validated[seed])
        found.append(
            StudentFile(
                seed=seed,
                path=path,
                link=os.path.relpath(path, page),
                accuracy=accuracy,
                validation=float(validated[seed]) if known else None,
                highest=bool(known and validated[seed] == validated[list(table.best.values)].max()),
            )
        )
    return found


def results_digest(results: Results, probes: Sequence[PairProbes] = ()) -> str | None:
    """A digest of all metrics of predictions and features; 32 digits, or None if there are none.

    Times, versions and paths are not part of it, so that a repeated study can be compared.
    """
    metrics = [m.name for m in results.metrics if m.source in ("predictions", "teacher")]
    columns = ["pair", "method", "seed", "diverged", "num_images", *metrics]
    runs = json.loads(results.runs[columns].to_json(orient="records", double_precision=15))
    runs.sort(key=lambda run: (run["pair"], run["method"], run["seed"]))
    if not runs and not probes:
        return None
    text = json.dumps([runs, probe_metrics(probes)] if probes else runs, sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def commits(origins: pd.DataFrame) -> list[str]:
    """The commits of the study's folder with which results were made, the most frequent first."""
    return origins["git_commit"].dropna().value_counts(sort=True).index.astype(str).tolist()


def bibtex(methods: Mapping[str, str]) -> str:
    """BibTeX entries of kdsteps and of the papers of the methods that a study uses.

    Args:
        methods: The method of each entry of the section `methods`.
    """
    software = {**SOFTWARE, "version": kdsteps_version() or "", "note": "Software"}
    entries = [_entry("software", "kdsteps", software)]
    with PAPERS.open(newline="", encoding="utf-8") as file:
        for paper in csv.DictReader(file):
            if paper["method"] in methods.values():
                entries.append(_paper(paper))
    return "\n\n".join(entries)


def _paper(paper: Mapping[str, str]) -> str:
    fields = {
        "title": f"{{{paper['title']}}}",
        "author": paper["authors"],
        "year": paper["year"],
        "eprint": paper["arxiv"],
        "archivePrefix": "arXiv",
    }
    return _entry("misc", paper["key"], fields)


def _entry(kind: str, key: str, fields: Mapping[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def commands(found: Sequence[str], version: str | None) -> list[str]:
    """The commands that repeat a study, with its folder as the current one.

    Args:
        found: From `commits`.
        version: Of kdsteps.
    """
    start = [f"git checkout {found[0].removesuffix('+')}"] if found else []
    needed = [f"# with kdsteps {version} and its extra `workflow` installed"] if version else []
    return [*start, *needed, "snakemake --cores 4 --resources gpu=1  # or: dvc repro"]
