"""Checks that nothing in a study is without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kdsteps.errors import KdstepsError
from kdsteps.study.section import Section
from kdsteps.study.settings import Build, BuildPairs, BuildStones
from kdsteps.study.study import Study

_OF_TEACHERS = ("train", "expected_accuracy")  # keys of a model
_BUILD_OF_PLAN: Mapping[str, type[Section]] = {"stones": BuildStones, "pairs": BuildPairs}
_LISTED = {"cuts": "num_stones", "select": "num_pairs"}  # and what follows from such a list


def check_effects(study: Study, where: str) -> None:
    """Check that entries set nothing that has no effect."""
    _check_students(study, where)
    for place, section in _build_sections(study):
        for key, number in _LISTED.items():
            if isinstance(getattr(section, key), tuple) and getattr(section, number) is not None:
                raise KdstepsError(
                    f"{where}: {place}.{number} has no effect, since {key} is a list; leave it out"
                )
    for name, entry in study.methods.items():
        used = list(_BUILD_OF_PLAN[entry.plan].model_fields) if entry.plan else []
        set_here = sorted(entry.build.model_fields_set) if entry.build is not None else ()
        for key in (key for key in set_here if key not in used):
            known = f"uses {', '.join(used)}" if used else "joins no layers"
            raise KdstepsError(
                f"{where}: methods.{name}.build.{key} has no effect, since {entry.method} {known}; "
                "leave it out"
            )


def _check_students(study: Study, where: str) -> None:
    teachers = {name for pair in study.pairs.values() for name in pair.teacher_names}
    for name in dict.fromkeys(pair.student for pair in study.pairs.values()):
        for key in _OF_TEACHERS if name not in teachers else ():
            if getattr(study.params.models[name], key) is not None:
                raise KdstepsError(
                    f"{where}: models.{name}.{key} is for teachers, and {name} is a student only; "
                    "leave it out (students are trained as `distil` says)"
                )


def _build_sections(study: Study) -> Iterator[tuple[str, Build]]:
    """Every section `build`, with its place: one for all, and those of pairs and methods."""
    yield "build", study.params.build
    for kind, entries in (("pairs", study.pairs), ("methods", study.methods)):
        for name, entry in entries.items():
            if entry.build is not None:
                yield f"{kind}.{name}.build", entry.build
