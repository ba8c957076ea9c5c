"""The house: rooms above each other, no arrow from a lower one to a higher one, and few floors in each."""

import ast
import pydoc
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import xinit

# From the bottom to the top; "" is the core, the modules of xinit/ itself.
ROOMS = ("", "parameters", "parallel", "history", "lazy", "recipes", "models", "insight", "cli")
FLOORS = 4
OUTSIDE = {"xinit", "xinit.__main__"}  # the doors: above all others

PACKAGE = Path(xinit.__file__).parent
MODULES = {
    ".".join(("xinit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or MODULES[module].name == "__init__.py" else ""


@cache
def imports(module):
    """The modules of xinit that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update({name if name in MODULES else node.module for name in names})
    return sorted((found & MODULES.keys()) - OUTSIDE - {module})


@cache
def floor(module):
    """1 for a module that takes nothing of its room, and one more than the highest that it takes for others."""
    return 1 + max((floor(other) for other in imports(module) if room(other) == room(module)), default=0)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - OUTSIDE))
def test_no_arrow_runs_up(module):
    assert room(module) in ROOMS
    for other in imports(module):
        assert ROOMS.index(room(other)) <= ROOMS.index(room(module)), f"{module} imports {other}"


@pytest.mark.parametrize("module", sorted(MODULES.keys() - OUTSIDE))
def test_floors(module):
    assert floor(module) <= FLOORS


def test_the_core_alone_is_imported():
    code = "import sys, xinit; print(*(name for name in sys.modules if name.startswith('xinit.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {room(name) for name in loaded if name in MODULES} == {"", "cli"}  # the command line's grammar, and no more
    assert [name for name in loaded if name.startswith("xinit.cli.")] == ["xinit.cli.grammar"]


def test_help_names_what_there_is():
    """In half a page before the list of modules, and of a recipe's module nothing but recipes."""
    doc = xinit.__doc__
    assert len(doc.splitlines()) < 30
    for name in re.findall(r"xinit\.(\w+)(?!\.\w)|(\w+)\(|[, ](\w+_)[,(]", doc):
        found = "".join(name)
        assert found in ("help", "fold_in") or hasattr(xinit, found), found
    listed = pydoc.plain(pydoc.render_doc(xinit.recipes)).split("FUNCTIONS")[1]
    assert re.findall(r"^    (\w+)\(", listed, re.MULTILINE) == ["gpt2", "llama", "mup", "torch", "vit"]
    assert "CLASSES" not in pydoc.render_doc(xinit.recipes)


def test_public_names():
    """Each of them is there, in whatever room, and nothing else is shown."""
    assert {name for name in dir(xinit) if not name.startswith("__")} == set(xinit.__all__)
    for name in xinit.__all__:
        assert getattr(xinit, name) is not None
    with pytest.raises(AttributeError, match="module 'xinit' has no attribute 'sharding'"):
        _ = xinit.sharding
