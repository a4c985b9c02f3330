"""``pip install .``: a package that runs from anywhere, with its models, examples and style."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

import biogpt

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_folder_with_code_is_named_for_the_build() -> None:
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("biogpt/**/*.py")}
    named = set(PROJECT["tool"]["setuptools"]["packages"])
    assert named == {".".join(folder.parts) for folder in folders} | {"biogpt.assets"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment in which the package was installed, and all other software is this one's."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs it, and nothing is downloaded")
    source, environment = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("environment")
    for folder in ("biogpt", "assets"):  # a copy, since building writes beside the code
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(environment)
    python = environment / "bin" / "python"
    packages = sysconfig.get_path("purelib", "venv", {"base": str(environment)})
    (Path(packages) / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    done = subprocess.run([*pip, *offline, source], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return environment


def run(folder: Path, *command: str | Path) -> str:
    """What a command prints in another folder than the project's."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_installed_command_writes_with_the_model_that_comes_along(
    installed: Path, tmp_path: Path
) -> None:
    command = installed / "bin" / "biogpt"
    text = run(tmp_path, command, "generate", "COVID-19 is", "--max-new-tokens", "5")
    assert text.startswith("COVID-19 is ")
    assert len(text.split()) > 3
    assert run(tmp_path, command, "--version") == f"biogpt {biogpt.__version__}"


@pytest.mark.slow
def test_the_installed_package_has_what_the_page_needs(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.metadata, biogpt\n"
        "from biogpt.checkpoint.hub import embedded_names\n"
        "from biogpt.ui import classify, entities, scripts, theme\n"
        "files = [theme.STYLE_SHEET, scripts.PICTURE, classify.EXAMPLES, entities.EXAMPLES]\n"
        "assert all(file.is_file() for file in files), files\n"
        "print(importlib.metadata.version('biogpt'), biogpt.__file__, *embedded_names())\n"
    )
    version, path, *models = run(tmp_path, installed / "bin" / "python", "-c", code).split()
    assert version == biogpt.__version__
    assert Path(path).is_relative_to(installed)
    assert models == sorted(folder.name for folder in (ROOT / "assets" / "models").iterdir())


def test_the_version_is_said_in_a_checkout_too() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "biogpt", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert shown.stdout.strip() == f"biogpt {biogpt.__version__}"
    assert re.fullmatch(r"\d+\.\d+\.\d+", biogpt.__version__)
