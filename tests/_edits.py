"""Edits of a copy of the package, and the jobs of a study whose code they change.

Run as a script, it prints a table of all edits: `python tests/_edits.py`.
"""

from __future__ import annotations

import ast
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _study import TINY

from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.identity.digests import Code
from kdsteps.study.loading import parse_study
from kdsteps.study.study import Study

PACKAGE = Path(code_identity.__file__).parents[1]
MODELS = {**TINY["models"], "other": {"family": "vgg", "depth": 8}}
PAIRS = {
    "pair": {"dataset": "digits", "teacher": "big", "student": "small"},
    "vgg": {"dataset": "digits", "teacher": "big", "student": "other"},
}
METHODS = {"labels": {}, "kd": {}, "block_kd": {}, "feature_only": {}}
STUDY = {**TINY, "models": MODELS, "pairs": PAIRS, "methods": METHODS}


@dataclass(frozen=True)
class Edit:
    """One edit of the package.

    Attributes:
        name: What it is.
        make: Makes it in the folder of a copy.
        jobs: Regular expressions of the jobs whose code it changes; each matches one at least.
    """

    name: str
    make: Callable[[Path], None]
    jobs: tuple[str, ...] = ()


def replaced(module: str, old: str, new: str) -> Callable[[Path], None]:
    """Replace a text that a module has."""

    def make(package: Path) -> None:
        file = package / module
        text = file.read_text()
        assert old in text, f"{module} has no {old!r}; choose another edit"
        file.write_text(text.replace(old, new))

    return make


def substituted(module: str, pattern: str, new: str) -> Callable[[Path], None]:
    """Replace what a regular expression matches."""

    def make(package: Path) -> None:
        file = package / module
        text, count = re.subn(pattern, new, file.read_text(), flags=re.MULTILINE)
        assert count, f"{module} has nothing like {pattern!r}; choose another edit"
        file.write_text(text)

    return make


def appended(module: str, text: str) -> Callable[[Path], None]:
    def make(package: Path) -> None:
        file = package / module
        file.write_text(file.read_text() + text)

    return make


def renamed(old: str, new: str) -> Callable[[Path], None]:
    """Rename something wherever the package mentions it."""

    def make(package: Path) -> None:
        found = 0
        for file in package.rglob("*.py"):
            text, count = re.subn(rf"\b{old}\b", new, file.read_text())
            found += count
            file.write_text(text)
        assert found, f"the package uses no {old!r}; choose another edit"

    return make


def moved_module(old: str, new: str) -> Callable[[Path], None]:
    """Move a module, with all imports of it."""

    def make(package: Path) -> None:
        target = package / new
        target.parent.mkdir(exist_ok=True)
        (package / old).rename(target)
        before, after = (_dotted(name) for name in (old, new))
        renamed(re.escape(before), after)(package)

    return make


def moved_definition(old: str, name: str, new: str) -> Callable[[Path], None]:
    """Move a function to a module of its own, from which the old one imports it."""

    def make(package: Path) -> None:
        lines = (package / old).read_text().splitlines(keepends=True)
        tree = ast.parse("".join(lines))
        (node,) = [node for node in tree.body if getattr(node, "name", "") == name]
        assert isinstance(node, ast.FunctionDef)
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
        imports = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
        head = "".join(f"{ast.unparse(each)}\n" for each in imports)
        (package / new).write_text(head + "".join(lines[first : node.end_lineno]))
        lines[first : node.end_lineno] = [f"from {_dotted(new)} import {name}\n"]
        (package / old).write_text("".join(lines))

    return make


def _dotted(file: str) -> str:
    return f"kdsteps.{file.removesuffix('.py').replace('/', '.')}"


def several(*edits: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(package: Path) -> None:
        for edit in edits:
            edit(package)

    return make


KD, LOOP, BASE = "methods/kd.py", "training/loop.py", "methods/base.py"

NOTHING = [
    Edit("log lines of the training loop", substituted(LOOP, r'log\.info\("', 'log.info("! ')),
    Edit(
        "a new log line in distil",
        substituted(
            "stages/_student.py", r"^    fit\.run\(\)$", '    fit.run()\n    log.info("!")'
        ),
    ),
    Edit("error texts of files", substituted("files/atomic.py", 'f"{path}: ', 'f"at {path} ')),
    Edit("error texts of methods", substituted("methods/_tensors.py", r'Error\(f"', 'Error(f"! ')),
    Edit("a text that an error shows", substituted("methods/_tensors.py", ' = f"', ' = f"! ')),
    Edit("docstrings of the loop", substituted(LOOP, '^( *)"""(?=[A-Z])', r'\1"""Well: ')),
    Edit("type hints of kd", substituted(KD, "-> Tensor", '-> "Any"')),
    Edit("the type of an option", substituted(KD, "weight: [A-Za-z]+", "weight: float")),
    Edit("a renamed function, kd_loss", renamed("kd_loss", "softened_divergence")),
    Edit("a renamed class, BasicBlock", renamed("BasicBlock", "ResidualBlock")),
    Edit("a renamed module", moved_module("methods/_tensors.py", "methods/_arithmetic.py")),
    Edit("a module in a new folder", moved_module("training/optimizers.py", "steps/rates.py")),
    Edit("a moved function", moved_definition(KD, "kd_loss", "methods/_softened.py")),
    Edit("a new unused helper", appended(LOOP, "\n\ndef helper(x):\n    return x + 1\n")),
    Edit("a new unused class", appended(KD, "\n\nclass Unused(KD):\n    weight = 3\n")),
    Edit("a method that is not used", substituted("methods/uld.py", r"\breturn\b", "return 2 *")),
    Edit(
        "a network that is not used",
        substituted("models/families/mobilenet.py", r"\breturn\b", "return not"),
    ),
    Edit("a comment", substituted(KD, r"^    same_shape\(", "    # a remark\n    same_shape(")),
    Edit("layout", substituted(KD, r"temperature\*\*2", "(\n        temperature\n    )  **  2")),
    Edit(
        "renamed local variables",
        several(
            substituted("training/optimizers.py", r"\btrained\b", "learned"),
            substituted("data/views.py", r"\bpadded\b", "wider"),
        ),
    ),
    Edit("messages of assertions", substituted(BASE, r'(assert [^,\n]+, )f"', r'\1f"! ')),
    Edit(
        "an import inside a function",
        substituted(
            KD,
            r"^    same_shape\(",
            "    from kdsteps.methods._tensors import same_shape\n\n    same_shape(",
        ),
    ),
    Edit("how settings are checked", appended("study/settings.py", "\n_MORE = 1\n")),
    Edit("the command line", appended("cli/main.py", "\n_MORE = 1\n")),
]

# Rules whose jobs read images.
IMAGES = "(train|train_check|distil|cache|cache_outputs|evaluate|evaluate_teacher) .*"
SOMETHING = [
    Edit(
        "a formula of kd",
        replaced(KD, "temperature**2", "2"),
        ("distil .* (block_)?kd .*",),
    ),
    Edit(
        "a default of kd",
        substituted(KD, r"([^_]weight: .*) = 0\.9", r"\1 = 0.8"),
        ("distil .* kd .*",),
    ),
    Edit(
        "a constant of a shared module",
        substituted("methods/_tensors.py", "1e-12", "1e-11"),
        ("distil .* feature_only .*",),
    ),
    Edit(
        "a constant of a method's module",
        substituted("methods/_distances.py", r'"kd": 4\.0', '"kd": 5.0'),
        ("distil .* block_kd .*",),
    ),
    Edit(
        "a default of a shared function",
        substituted("methods/labels.py", r"label_smoothing(.*) = 0\.0", r"label_smoothing\1 = 0.1"),
        ("train .*", "distil .* labels .*"),
    ),
    Edit(
        "the optimizer",
        replaced("training/optimizers.py", "torch.optim.SGD)", "torch.optim.Adagrad)"),
        ("train .*", "distil .*"),
    ),
    Edit(
        "a network that one pair uses",
        substituted("models/families/vgg.py", r"(nn\.ReLU\()", r"nn.GELU("),
        ("(distil|evaluate|evaluate_latency|build) vgg.*",),
    ),
    Edit(
        "how images are augmented",
        replaced("data/views.py", "2 * self.crop_padding + 1", "2 * self.crop_padding + 2"),
        (IMAGES,),
    ),
    Edit(
        "the formula of a score",
        replaced("scores/separation.py", "between.sum() - between.trace()", "between.sum()"),
        ("score .*",),
    ),
    Edit(
        "a template of the report",
        appended("report/templates/page.html.j2", "<!-- more -->"),
        ("report ",),
    ),
    Edit(
        "the formula of a metric",
        replaced("evaluation/predictions.py", "correct - confidence", "confidence - correct"),
        ("(train_check|evaluate|evaluate_teacher|evaluate_latency|report) .*",),
    ),
    Edit(
        "how fractions of a run become epochs",
        replaced("study/run_length.py", "length * epochs", "length * (epochs - 1)"),
        ("train .*", "distil .*"),
    ),
    Edit(
        "which layers are joined",
        replaced("study/joints.py", "round((number + 1) * len(layers) / count)", "number + 1"),
        ("build .*",),
    ),
    Edit(
        "the base class of methods",
        substituted(BASE, r"logits\.to\(torch\.float16\)", "logits.to(torch.bfloat16)"),
        ("distil .*", "train .*"),
    ),
    Edit(
        "a statement that acts on import",
        replaced(
            LOOP,
            "import logging\n",
            "import logging\nimport torch as _torch\n\n_torch.manual_seed(3)\n",
        ),
        ("train .*", "distil .*"),
    ),
]


@contextmanager
def copied_package() -> Iterator[Path]:
    """A copy of the package, for edits."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "kdsteps")
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        yield copy


def job_digests(package: Path = PACKAGE, study: Study | None = None) -> dict[str, str]:
    """The digest of the code of every job of a study, with the package in that folder."""
    study, code = study or parse_study(STUDY), Code(package)
    return {
        f"{rule} {' '.join(names.values())}": code.digest(code_identity.roots(study, rule, names))
        for rule in graph.OUTPUTS
        for names in graph.jobs(study, rule)
    }


def changed_jobs(edit: Edit, before: dict[str, str]) -> set[str]:
    """The jobs whose code an edit changes."""
    with copied_package() as package:
        edit.make(package)
        after = job_digests(package)
    return {job for job in before if before[job] != after[job]}


def expected_jobs(edit: Edit, jobs: Iterable[str]) -> set[str]:
    return {job for job in jobs if any(re.fullmatch(pattern, job) for pattern in edit.jobs)}


def main() -> None:
    """Print which jobs each edit runs again."""
    before = job_digests()
    print(f"{len(before)} jobs")
    for edit in [*NOTHING, *SOMETHING]:
        changed = changed_jobs(edit, before)
        counts = Counter(job.split()[0] for job in changed)
        said = ", ".join(f"{rule} {count}" for rule, count in counts.items()) or "nothing"
        wrong = "" if changed == expected_jobs(edit, before) else "  NOT AS EXPECTED"
        print(f"{edit.name:34} {said}{wrong}")


if __name__ == "__main__":
    main()
