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
ROOMS = ("", "parameters", "parallel", "observe", "history", "lazy", "recipes", "models", "insight", "cli")
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
    assert re.findall(r"^    (\w+)\(", listed, re.MULTILINE) == [
        "gpt2",
        "kaiming",
        "llama",
        "mup",
        "torch",
        "vit",
        "xavier",
    ]
    assert "CLASSES" not in pydoc.render_doc(xinit.recipes)


def test_public_names():
    """Each of them is there, in whatever room, and nothing else is shown."""
    assert {name for name in dir(xinit) if not name.startswith("__")} == set(xinit.__all__)
    for name in xinit.__all__:
        assert getattr(xinit, name) is not None
    with pytest.raises(AttributeError, match="module 'xinit' has no attribute 'sharding'"):
        _ = xinit.sharding


# Private names that no other module than _torch may take from torch. These are not torch's, or are as good as public:
ALLOWED = {
    "_parameters": "of nn.Module: in every pickled module, and in the code of half the world",
    "_buffers": "as _parameters",
    "_modules": "as _parameters",
    "_u": "of spectral norms: names of buffers, which checkpoints hold",
    "_v": "as _u",
    "_init_weights": "of transformers",
    "_internal_dict": "of diffusers",
    "_model_mapping": "of transformers",
    "_replace": "of named tuples",
    "_getframe": "of sys",
}
ASK = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "attribute", "private"}


def is_private(name):
    return name.startswith("_") and not name.startswith("_xinit_") and not name.endswith("__")


@cache
def own_names():
    """Private names that some module of xinit gives: to functions, classes, variables, and attributes of self."""
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                found.add(node.attr)
    return found


def private_names(tree):
    """Those that are looked up in something else than the module, and are none that xinit gives."""
    torchs = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).partition(".")[0] == "torch"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            yield from filter(is_private, [*node.module.split("."), *(alias.name for alias in node.names)])
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split(".") if is_private(part))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value).partition(".")[0] in torchs or node.attr not in own_names():
                yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ASK:
            texts = (part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str))
            yield from (text for text in texts if is_private(text))


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"xinit._torch"}))
def test_private_names_of_torch(module):
    """They are in xinit._torch, with what breaks without each."""
    assert set(private_names(ast.parse(MODULES[module].read_text()))) <= ALLOWED.keys()


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch import _C",
        "from torch._C import DispatchKey",
        "import torch; torch._C.DispatchKey",
        "import torch as t; t.Tensor._make_subclass",
        "from torch.nn import init; init._no_grad_fill_(tensor)",
        "module.weight._version",
        "getattr(tensor, '_base')",
    ],
)
def test_private_names_are_seen(line):
    assert [*private_names(ast.parse(line))]


def test_names_of_tests():
    """pytest imports test modules by their names alone: a second one of a name stops all."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
