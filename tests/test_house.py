"""The house stands: imports point down, no circle, nothing heavy where it is not needed, no private door.

Each rule is a function that lists what breaks it. It is asked about the code as it is, and about a copy with
a fault that it must name.
"""

import ast
import shutil
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from house import PLAN, ROOT, House, Import, floor_of, room_of

LINE = 110
# Software that takes long to load, or that only some need; the modules and folders that may import it.
HOMES = {
    "gradio": ("app", "biogpt.ui"),
    "matplotlib": ("biogpt.bench", "biogpt.training.plots"),
    "biogpt.training": ("biogpt.cli", "biogpt.training"),
    "ray": ("biogpt.cluster",),
    "pyarrow": ("biogpt.cluster.parquet",),
}
# The other way round: what modules and folders may not import.
KEPT_OUT = {
    "biogpt.ui": (
        "torch",
        "biogpt.model",
        "biogpt.runners",
        "biogpt.training",
        "biogpt.generation.search",
        "biogpt.generation.sampling",
        "biogpt.checkpoint.pretrained",
    ),
    "biogpt.text": ("torch", "safetensors"),
    "biogpt.generation.options": ("torch",),
    "biogpt.generation": ("biogpt.text",),
}
# What the command line's help must do without: seconds of loading.
HEAVY = {"ray", "torch", "matplotlib", "gradio", "huggingface_hub"}
HIDING = {"each", "own", "made", "kept"}  # say nothing of what a loop goes over
TUPLES = {"_replace", "_asdict", "_fields", "_make"}  # public in a named tuple, in spite of their names


def _within(module: str, places: Iterable[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def arrows_that_do_not_point_down(house: House) -> list[str]:
    rooms = [(arrow, room_of(arrow.importer), room_of(arrow.imported)) for arrow in house.arrows]
    return [
        f"{arrow}; expected an arrow from {above} down, as in FLOORS of tests/house.py"
        for arrow, above, below in rooms
        if above != below and floor_of(below) <= floor_of(above)
    ]


def circles(house: House) -> list[str]:
    faults = []
    for kind, name_of in (("modules", str), ("folders", room_of)):
        uses: dict[str, set[str]] = {}
        for arrow in house.arrows:
            above, below = name_of(arrow.importer), name_of(arrow.imported)
            if above != below:
                uses.setdefault(above, set()).add(below)
        try:
            TopologicalSorter(uses).prepare()
        except CycleError as error:
            faults.append(f"a circle of {kind}: {' > '.join(error.args[1])}")
    return faults


def imports_out_of_place(house: House) -> list[str]:
    def is_wrong(arrow: Import) -> bool:
        away = (
            _within(arrow.imported, [software]) and not _within(arrow.importer, homes)
            for software, homes in HOMES.items()
        )
        into = (
            _within(arrow.importer, [room]) and _within(arrow.imported, out) for room, out in KEPT_OUT.items()
        )
        return any(away) or any(into)

    return [str(arrow) for arrow in house.imports if is_wrong(arrow)]


def what_help_loads_in_vain(house: House) -> list[str]:
    return [
        f"{module} loads {', '.join(sorted(heavy))} at once"
        for module in ("app", "biogpt.__main__")
        if (heavy := house.loaded_by(module) & HEAVY)
    ]


def private_names_of_others(house: House) -> list[str]:
    """Names with an underscore that a file takes from elsewhere: it defines none of that name itself."""
    faults = []
    for module, tree in house.trees.items():
        defined, others = _defined(tree), _other_software(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                root: ast.expr = node
                while isinstance(root, ast.Attribute):
                    root = root.value
                is_other = isinstance(root, ast.Name) and root.id in others
                is_known = node.attr in defined | TUPLES or _is_own(node.value)
                if _is_private(node.attr) and not is_known and not is_other:
                    faults.append(f"{module}, line {node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("biogpt"):
                names = [alias.name for alias in node.names if _is_private(alias.name)]
                faults += [f"{module}, line {node.lineno}: {name} of {node.module}" for name in names]
    return faults


def _is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _defined(tree: ast.Module) -> set[str]:
    """Names that a file gives to functions, classes, variables and attributes of ``self`` and ``cls``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
            names.add(node.attr)
    return names


def _other_software(tree: ast.Module) -> set[str]:
    """Names under which a file imports modules that are not ours."""
    aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {
        (alias.asname or alias.name).partition(".")[0]
        for alias in aliases
        if not _within(alias.name, ["biogpt", "app"])
    }


def loops_that_do_not_say_over_what(house: House) -> list[str]:
    return [
        f"{module}, line {name.lineno}: a loop variable is called {name.id!r}; say what it holds"
        for module, tree in house.trees.items()
        for loop in ast.walk(tree)
        if isinstance(loop, ast.For | ast.comprehension)
        for name in ast.walk(loop.target)
        if isinstance(name, ast.Name) and name.id in HIDING
    ]


def durations_by_a_clock_that_is_set(house: House) -> list[str]:
    """The time of day is told in whole seconds, and measures nothing: it jumps when the clock is set."""
    faults = []
    for module, tree in house.trees.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        told = [given for call in calls if ast.unparse(call.func) == "int" for given in call.args]
        faults += [
            f"{module}, line {call.lineno}: {ast.unparse(call)} jumps; time.monotonic() does not"
            for call in calls
            if ast.unparse(call.func) in ("time.time", "datetime.now", "datetime.datetime.now")
            and call not in told
        ]
    return faults


def long_lines(house: House) -> list[str]:
    root = house.files["app"].parent
    files = [path for pattern in ("*.py", "biogpt/**/*.py", "tests/**/*.py") for path in root.glob(pattern)]
    return [
        f"{path.relative_to(root)}, line {number}: {len(line)} characters, expected at most {LINE}"
        for path in sorted(files)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > LINE
    ]


Rule = Callable[[House], list[str]]
RULES: tuple[Rule, ...] = (
    arrows_that_do_not_point_down,
    circles,
    imports_out_of_place,
    what_help_loads_in_vain,
    private_names_of_others,
    loops_that_do_not_say_over_what,
    durations_by_a_clock_that_is_set,
    long_lines,
)


@pytest.fixture(scope="module")
def house() -> House:
    return House.read()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_stands(rule: Rule, house: House) -> None:
    assert rule(house) == []


# In which file, what to add at its end, and what the rule then names.
FAULTS: tuple[tuple[Rule, str, str, str], ...] = (
    (arrows_that_do_not_point_down, "biogpt/model/cache.py", "import biogpt.runners.step", "model.cache"),
    (
        arrows_that_do_not_point_down,
        "biogpt/text/results.py",
        "from biogpt.model import config",
        "text.results",
    ),
    (
        arrows_that_do_not_point_down,
        "biogpt/checkpoint/hub.py",
        "import biogpt.serving.engine",
        "checkpoint.hub",
    ),
    (
        arrows_that_do_not_point_down,
        "biogpt/tasks/entities.py",
        "def late():\n    from biogpt.serving import engine\n",
        "tasks.entities",
    ),
    (arrows_that_do_not_point_down, "biogpt/serving/zero.py", "import biogpt.tasks.entities", "serving.zero"),
    (arrows_that_do_not_point_down, "biogpt/ui/links.py", "import biogpt.cli", "ui.links"),
    (
        circles,
        "biogpt/model/config.py",
        "def late():\n    import biogpt.model.heads\n",
        "a circle of modules",
    ),
    (circles, "biogpt/text/results.py", "import biogpt.ui.page", "a circle of folders"),
    (imports_out_of_place, "biogpt/text/sentences.py", "import torch.nn", "imports torch.nn"),
    (imports_out_of_place, "biogpt/ui/links.py", "def late():\n    import torch\n", "imports torch"),
    (
        imports_out_of_place,
        "biogpt/ui/links.py",
        "from biogpt.model import heads",
        "imports biogpt.model.heads",
    ),
    (imports_out_of_place, "biogpt/serving/engine.py", "from gradio import Blocks", "imports gradio"),
    (imports_out_of_place, "biogpt/training/corpus.py", "import matplotlib.pyplot", "imports matplotlib"),
    (imports_out_of_place, "biogpt/serving/engine.py", "import ray", "imports ray"),
    (
        imports_out_of_place,
        "biogpt/serving/engine.py",
        "import biogpt.training.plots",
        "biogpt.training.plots",
    ),
    (what_help_loads_in_vain, "app.py", "from biogpt.ui import page", "app loads gradio"),
    (
        private_names_of_others,
        "biogpt/cli/score.py",
        "def f(engine):\n    return engine._waiting\n",
        "engine._waiting",
    ),
    (
        private_names_of_others,
        "biogpt/cli/score.py",
        "from biogpt.bench import _TEXT",
        "_TEXT of biogpt.bench",
    ),
    (loops_that_do_not_say_over_what, "biogpt/text/results.py", "[own for own in ()]", "'own'"),
    (
        durations_by_a_clock_that_is_set,
        "biogpt/ui/runs.py",
        "def late():\n    return time.time()\n",
        "ui.runs",
    ),
    (long_lines, "app.py", f"# {'x' * LINE}", "app.py, line"),
)


@pytest.mark.parametrize(
    ("rule", "file", "code", "named"), FAULTS, ids=[f"{rule.__name__}-{file}" for rule, file, *_ in FAULTS]
)
def test_a_fault_is_seen(rule: Rule, file: str, code: str, named: str, house: House, tmp_path: Path) -> None:
    copied = _copy(tmp_path)
    with (copied / file).open("a", encoding="utf-8") as code_file:
        code_file.write(f"\n{code}\n")
    found = [fault for fault in rule(House.read(copied)) if fault not in rule(house)]
    assert any(named in fault for fault in found), found


def test_a_new_folder_needs_a_floor(tmp_path: Path) -> None:
    copied = _copy(tmp_path)
    (copied / "biogpt" / "cellar").mkdir()
    (copied / "biogpt" / "cellar" / "wine.py").write_text("import biogpt.text.results\n")
    with pytest.raises(ValueError, match=r"biogpt\.cellar is on no floor"):
        arrows_that_do_not_point_down(House.read(copied))


def test_the_picture_shows_every_room(house: House) -> None:
    unseen = {"biogpt", "biogpt.__main__", "biogpt.paths"}  # names and paths only
    assert {room_of(module) for module in house.files} - unseen == set(PLAN)


def _copy(folder: Path) -> Path:
    shutil.copytree(ROOT / "biogpt", folder / "biogpt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "app.py", folder)
    return folder
