"""The plan of the house, read from the code: which module imports which, and a picture of the folders.

``python tests/house.py`` draws ``assets/screenshots/house.png``.
"""

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom; arrows point down only, and rooms on one floor do not know each other.
FLOORS = (
    ("app", "biogpt.__main__"),
    ("biogpt.cli",),
    ("biogpt.bench",),
    ("biogpt",),  # the public names
    ("biogpt.ui",),
    ("biogpt.training", "biogpt.cluster"),
    ("biogpt.tasks", "biogpt.serving"),
    ("biogpt.checkpoint",),
    ("biogpt.runners",),
    ("biogpt.generation",),
    ("biogpt.model", "biogpt.text", "biogpt.paths"),
)


@dataclass(frozen=True)
class Import:
    """One import statement's arrow.

    Attributes:
        importer: a module of ours, such as ``biogpt.ui.page``.
        imported: a module of ours, or the full name of another one's (``torch.nn``).
        line: where it stands.
        is_deferred: whether it stands in a function, and so costs nothing until that is called.
    """

    importer: str
    imported: str
    line: int
    is_deferred: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


@dataclass(frozen=True)
class House:
    """The code below a folder that holds ``app.py`` and ``biogpt/``.

    Attributes:
        files: path by module name.
        trees: what is in them.
        imports: all arrows, those to other software included.
    """

    files: dict[str, Path]
    trees: dict[str, ast.Module]
    imports: list[Import]

    @classmethod
    def read(cls, root: Path = ROOT) -> "House":
        files = {_module_name(path, root): path for path in (root / "app.py", *root.glob("biogpt/**/*.py"))}
        trees = {name: _parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
        imports = [arrow for name, tree in trees.items() for arrow in _imports(name, tree, files)]
        return cls(files, trees, imports)

    @property
    def arrows(self) -> list[Import]:
        """The imports of our own modules."""
        return [arrow for arrow in self.imports if arrow.imported in self.files]

    def loaded_by(self, module: str) -> set[str]:
        """Everything that importing a module imports at once, other software by its top name."""
        loaded: set[str] = set()
        waiting = [module]
        while waiting:
            name = waiting.pop()
            if name in loaded:
                continue
            loaded.add(name)
            if name in self.files:
                parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
                waiting += [parent for parent in parents if parent in self.files]
                waiting += [
                    arrow.imported if arrow.imported in self.files else arrow.imported.partition(".")[0]
                    for arrow in self.imports
                    if arrow.importer == name and not arrow.is_deferred
                ]
        return loaded


_parse = cache(ast.parse)  # nobody changes a tree


def room_of(module: str) -> str:
    """The folder, or the module by itself where it lies beside the folders."""
    return ".".join(module.split(".")[:2])


def floor_of(room: str) -> int:
    """0 at the top.

    Raises:
        ValueError: the room is on no floor.
    """
    for number, floor in enumerate(FLOORS):
        if room in floor:
            return number
    raise ValueError(f"{room} is on no floor; give it one in FLOORS of tests/house.py")


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, tree: ast.Module, files: dict[str, Path]) -> Iterator[Import]:
    def visit(node: ast.AST, is_deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                if child.level:
                    raise ValueError(f"{module}, line {child.lineno}: a relative import; give the full name")
                # ``from biogpt.text import tokenizer`` imports a module, as does ``from torch import nn``.
                inner = [f"{child.module}.{alias.name}" for alias in child.names]
                names = [name if name in files else child.module or "" for name in inner]
            for name in dict.fromkeys(names):
                yield Import(module, name, child.lineno, is_deferred)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, is_deferred or inside or _is_for_types(child))

    yield from visit(tree, False)
    # A file that imports by name has the names of modules in tables.
    if any(
        isinstance(node, ast.ImportFrom | ast.Import) and "importlib" in ast.unparse(node)
        for node in tree.body
    ):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in files and node.value != module:
                yield Import(module, node.value, node.lineno, True)


def _is_for_types(node: ast.AST) -> bool:
    """``if TYPE_CHECKING:``, which is never run."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _uses(house: House) -> dict[str, set[str]]:
    """For each room the rooms that it uses, less those that another one of them uses as well."""
    uses: dict[str, set[str]] = {}
    for arrow in house.arrows:
        above, below = room_of(arrow.importer), room_of(arrow.imported)
        if above != below:
            uses.setdefault(above, set()).add(below)

    def reached(room: str) -> set[str]:
        direct = uses.get(room, set())
        return direct.union(*(reached(below) for below in direct))

    return {
        room: {below for below in direct if not any(below in reached(other) for other in direct - {below})}
        for room, direct in uses.items()
    }


def _lines(house: House, room: str) -> int:
    return sum(
        len(path.read_text(encoding="utf-8").splitlines())
        for module, path in house.files.items()
        if room_of(module) == room
    )


_EVENING = ("biogpt.model", "biogpt.generation", "biogpt.text")  # what a newcomer reads
# For each room its column and row, such that no arrow runs behind another room; and a few words.
PLAN = {
    "app": (1.0, 0, "flags, start of the page"),
    "biogpt.cli": (5.0, 0, "commands"),
    "biogpt.ui": (1.0, 1, "tabs, what a click does"),
    "biogpt.training": (3.0, 1, "pre-train, fine-tune"),
    "biogpt.cluster": (5.0, 1, "jobs, replicas"),
    "biogpt.bench": (7.0, 1, "speed, memory"),
    "biogpt.tasks": (2.6, 2, "entities, classes"),
    "biogpt.serving": (5.4, 2, "many requests at once"),
    "biogpt.checkpoint": (2.6, 3, "find, load, save"),
    "biogpt.runners": (3.6, 4, "CPU, CUDA, int8"),
    "biogpt.generation": (4.8, 5, "sampling, search"),
    "biogpt.text": (1.0, 5, "tokenizer, documents"),
    "biogpt.model": (4.8, 6, "the paper's network"),
}
_WIDTH, _HEIGHT, _STEP = 1.8, 0.8, 1.35  # of a room, and from row to row


def draw(house: House, path: Path) -> None:
    """Folders as rooms, with their lines of code, and arrows down to the rooms that each uses."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    rows = 1 + max(row for _, row, _ in PLAN.values())
    size = (8, rows * _STEP - (_STEP - _HEIGHT) + 0.2)
    figure = Figure(figsize=size, dpi=130)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, size[0])
    axes.set_ylim(0, size[1])
    tops = {room: size[1] - 0.1 - row * _STEP for room, (_, row, _) in PLAN.items()}
    for above, used in _uses(house).items():
        for below in used:
            if above in PLAN and below in PLAN:
                start, end = PLAN[above][0], PLAN[below][0]
                lean = max(-0.6, min(0.6, end - start))  # leave and arrive on the side of the other room
                axes.annotate(
                    "",
                    xy=(end - lean / 2, tops[below]),
                    xytext=(start + lean, tops[above] - _HEIGHT),
                    arrowprops={"arrowstyle": "-|>", "color": "#475569", "linewidth": 1.5, "shrinkA": 0},
                )
    for room, (middle, _, words) in PLAN.items():
        is_evening = room in _EVENING
        axes.add_patch(
            FancyBboxPatch(
                (middle - _WIDTH / 2, tops[room] - _HEIGHT),
                _WIDTH,
                _HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor="#d5f2ed" if is_evening else "white",
                edgecolor="#0f766e" if is_evening else "#475569",
                linewidth=2 if is_evening else 1.2,
            )
        )
        is_folder = house.files[room].name == "__init__.py"
        name = room.removeprefix("biogpt.") + ("/" if is_folder else ".py")
        lines = f"{_lines(house, room):,} lines"
        for text, height, size_of_font, weight in (
            (name, 0.2, 13, "bold"),
            (words, 0.44, 9, "normal"),
            (lines, 0.63, 9, "normal"),
        ):
            where = (middle, tops[room] - height)
            axes.text(*where, text, ha="center", va="center", fontsize=size_of_font, weight=weight)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the folders and what they import.")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "screenshots" / "house.png")
    draw(House.read(), parser.parse_args().out)
