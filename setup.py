"""Pack workflow, profiles and recipes into the package; all else is in pyproject.toml."""

from setuptools import find_packages, setup

SHIPPED = ("workflow", "profiles", "recipes")  # found again by kdsteps/places.py

setup(
    packages=[*find_packages(include=["kdsteps*"]), *(f"kdsteps.{name}" for name in SHIPPED)],
    package_dir={f"kdsteps.{name}": name for name in SHIPPED},
    package_data={
        "kdsteps": ["py.typed", "cli/templates/*", "report/*.csv", "report/templates/*"],
        **{f"kdsteps.{name}": ["**/*"] for name in SHIPPED},
    },
)
