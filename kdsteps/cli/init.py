"""The commands `init`, which begins a study, and `lock`, which moves one to another version."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kdsteps.cli.networks import OPTIONS, Network, is_file, network_of_file, pretrained_network
from kdsteps.cli.proposal import STUDENT, TEACHER, described, proposed_study, stored_size
from kdsteps.cli.resolve import as_dependencies
from kdsteps.errors import KdstepsError
from kdsteps.files.home import expanded
from kdsteps.files.manifest import source_paths
from kdsteps.files.text import write_bytes
from kdsteps.jobs.version_lock import LOCK, lock_text, locked_version, write_lock
from kdsteps.places import installed_version, shipped
from kdsteps.study.loading import parse_study
from kdsteps.study.yaml_text import read_yaml

if TYPE_CHECKING:
    from kdsteps.data.overview import Overview

# not under their own names there: DVC would take each dvc.yaml in a clone for one of its own
_TEMPLATES = Path(__file__).parent / "templates"
_LISTS = (".gitignore", ".dvcignore")  # which may be there: lines are added to them
_DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
{no_git}[cache]
    # never links: Snakemake and the stages rewrite files in place of old ones
    type = "reflink,copy"
"""
_ROLES = {"teacher": TEACHER, "student": STUDENT}  # what is proposed by default
_PATHS = ("path", "train", "validation", "test")  # options of data that `look_at` sets to paths


def add_commands(commands: Any) -> None:
    """Add `init` and `lock` to the commands of `kdsteps`."""
    parser = commands.add_parser(
        "init",
        help="begin a study in a folder",
        description="Begin a study: look at the images, propose settings for them, and write "
        "params.yaml, Snakefile, dvc.yaml and profiles. Sets up git and DVC where they are not. "
        "Nothing is overwritten.",
    )
    parser.add_argument(
        "folder", help="the folder of the study; it is created if it does not exist"
    )
    parser.add_argument(
        "--images",
        metavar="PATH",
        help="a folder with one folder per class, a folder of images without labels, a list (CSV "
        "or TSV), or Parquet files; without it, the study is about handwritten digits",
    )
    for role, default in (("teacher", "a ResNet-14"), ("student", "a ResNet-8")):
        parser.add_argument(
            f"--{role}",
            metavar="NAME|FILE",
            help="a network with published weights, by its name in timm or as FAMILY:NAME; or a "
            f"file of weights (default: {default} without weights)",
        )
        parser.add_argument(
            f"--{role}-network",
            metavar="NAME|ENTRY",
            help=f"the network that the file of --{role} belongs to, if the file does not name it; "
            f"with its options, as an entry of `models` in params.yaml: {OPTIONS}",
        )
    parser.set_defaults(run=init)
    locking = commands.add_parser(
        "lock",
        help=f"move a study to the installed version of kdsteps ({LOCK})",
        description=f"Write the installed version of kdsteps into {LOCK}, in the folder of a "
        "study. `kdsteps stale` then lists what has to be computed again.",
    )
    locking.set_defaults(run=lock)


def init(given: argparse.Namespace) -> None:
    """Write the files of a study, set up git and DVC, and print what was found and what is next.

    Raises:
        KdstepsError: A file is there already, or the images or networks are not what a study needs.
    """
    folder = Path(given.folder)
    if folder.exists() and not folder.is_dir():
        raise KdstepsError(f"{folder}: is not a folder; name one, which need not exist")
    if given.images is None and (given.teacher or given.student):
        raise KdstepsError("--teacher and --student go with --images; name the images as well")
    for role in _ROLES:
        if getattr(given, f"{role}_network") and not is_file(getattr(given, role), f"--{role}"):
            raise KdstepsError(
                f"--{role}-network: says which network the weights in a file are of; name the file "
                f"in --{role}, or the network alone"
            )
    in_git = _is_in_git(folder)
    files = _files(folder, in_git=in_git or shutil.which("git") is not None)
    added = {name: folder / name for name in _LISTS if (folder / name).is_file()}
    there = [name for name in ("params.yaml", *files) if os.path.lexists(folder / name)]
    if there := [name for name in there if name not in added]:
        raise KdstepsError(
            f"{folder}: already has {', '.join(there)}, and nothing is overwritten; name another "
            "folder, or move these files away"
        )
    params, inputs = _study(folder, given)
    files |= {"params.yaml": params, "dvc.yaml": _pipeline(inputs, params)}
    files |= {name: _extended(path, files[name]) for name, path in added.items()}
    for name, content in files.items():
        write_bytes(folder / name, content.encode("utf-8", "surrogateescape"))
    if not in_git and shutil.which("git"):
        subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    print(f"The study is in {folder / 'params.yaml'}; change what you like.")
    print("To try it for a minute, and then to run it:")
    for command in _next_commands(folder):
        print(f"    {command}")


def lock(given: argparse.Namespace) -> None:
    """Write the installed version into kdsteps.lock, and print what it was before."""
    if (before := locked_version()) is None:
        raise KdstepsError(f"{LOCK}: not found; run `kdsteps lock` in the folder of a study")
    write_lock()
    print(f"{LOCK}: kdsteps {installed_version()} (was {before})")


def _study(folder: Path, given: argparse.Namespace) -> tuple[str, list[str]]:
    """The text of params.yaml, and the files and folders of the images, as seen from `folder`."""
    if given.images is None:
        print("No --images: this is a study of the handwritten digits that scikit-learn has.")
        return (shipped("recipes") / "digits.yaml").read_text(encoding="utf-8"), []
    from kdsteps.data.overview import look_at

    found = look_at(given.images)
    paths = dict.fromkeys(source_paths(found.kind, found.options))
    inputs = [_seen_from(folder, path) for path in paths]
    if around := [path for path in inputs if not path.strip("./")]:
        raise KdstepsError(
            f"--images: {given.images}: there are images in {folder / around[0]}, which would have "
            "the results as well; begin the study in another folder, or move the images into one "
            "for them alone"
        )
    options = {
        name: _seen_from(folder, Path(value)) if name in _PATHS else value
        for name, value in found.options.items()
    }
    found = replace(found, options=options)
    networks = {role: _network(role, folder, given, found) for role in _ROLES}
    params = proposed_study(given.images, found, **networks)
    parse_study(read_yaml(params))
    for line in [*described(found), *networks["teacher"].notes, *networks["student"].notes]:
        print(line)
    files = [network.file for network in networks.values() if network.file is not None]
    return params, [*inputs, *(_seen_from(folder, file) for file in dict.fromkeys(files))]


def _network(role: str, folder: Path, given: argparse.Namespace, found: Overview) -> Network:
    """The teacher or the student of the study, by its name or from its file."""
    name, kind = getattr(given, role), getattr(given, f"{role}_network")
    if name is None:
        return _ROLES[role]
    if not is_file(name, f"--{role}"):
        return pretrained_network(name, f"--{role}")
    file = expanded(name)
    size = stored_size(found, [Network({}, file=file)])
    return network_of_file(
        *(file, kind, found),
        role=role,
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        checkpoint=_seen_from(folder, Path(name)),
    )


def _seen_from(folder: Path, path: Path) -> str:
    """A path for params.yaml: relative to the study, unless it is absolute and elsewhere."""
    path = expanded(path)
    named = path.parent.resolve() / path.name  # a link to the images stays what it is
    if path.is_absolute() and not named.is_relative_to(folder.resolve()):
        return str(path)
    return os.path.relpath(named, folder.resolve())


def _files(folder: Path, *, in_git: bool) -> dict[str, str]:
    """The files of every new study by their paths, without params.yaml; dvc.yaml has no inputs."""
    files = {
        "Snakefile": (_TEMPLATES / "Snakefile").read_text(encoding="utf-8"),
        "dvc.yaml": "",
        str(LOCK): lock_text(),
        ".gitignore": (_TEMPLATES / "gitignore").read_text(encoding="utf-8"),
        ".dvcignore": (_TEMPLATES / "dvcignore").read_text(encoding="utf-8"),
    }
    for source, target in (("profiles", "profiles"), ("workflow/plots", ".dvc/plots")):
        for file in sorted(shipped(source).rglob("*.*")):
            name = file.relative_to(shipped(source)).as_posix()
            files[f"{target}/{name}"] = file.read_text(encoding="utf-8")
    if not (folder / ".dvc" / "config").exists():
        no_git = "" if in_git else "    no_scm = true\n"
        files[".dvc/config"] = _DVC_CONFIG.format(no_git=no_git)
        files[".dvc/.gitignore"] = "/config.local\n/tmp\n/cache\n"
    return files


def _extended(path: Path, wanted: str) -> str:
    """A list of ignored paths with the lines that it lacks after its own."""
    own = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return "\n".join([*own, *(line for line in wanted.splitlines() if line not in own), ""])


def _pipeline(inputs: list[str], params: str) -> str:
    """dvc.yaml, which follows the installed kdsteps by kdsteps.lock, and some files and folders.

    Args:
        params: The text of params.yaml, whose first pair has the student that DVC knows by name.
    """
    text = (_TEMPLATES / "pipeline.yaml").read_text(encoding="utf-8")
    followed = as_dependencies([str(LOCK), *inputs])
    pair = next(iter(yaml.safe_load(params)["pairs"]))
    text = text.replace("results/export/resnet20-resnet8/", f"results/export/{pair}/")
    return text.replace(f"deps: [{LOCK}]", f"deps: {followed}")


def _is_in_git(folder: Path) -> bool:
    """Whether a folder, or the one it will be in, belongs to a git repository."""
    if shutil.which("git") is None:
        return False
    path = folder.absolute()
    nearest = next(each for each in (path, *path.parents) if each.is_dir())
    command = ["git", "-C", str(nearest), "rev-parse", "--is-inside-work-tree"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "true"


def _next_commands(folder: Path) -> list[str]:
    """The commands that check and run the study, for a shell in the current folder."""
    install = [] if shutil.which("snakemake") else ["pip install 'kdsteps[workflow]'"]
    enter = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    return [*install, f"{enter}kdsteps check", "snakemake --cores 4 --resources gpu=1"]
