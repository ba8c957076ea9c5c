"""The guide: its code runs and prints what is shown, its pictures have commands, and it is a site that needs no network."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch.distributed as dist

import xinit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from blocks import Block, blocks, commands, missing, run  # noqa: E402

PAGES = sorted(path.name for path in DOCS.glob("*.md"))
ELSEWHERE = {  # commands of pages, but for xinit's own, and what runs them
    "docs/draw.py": "test_pictures_that_the_guide_draws",
    "--train": "insight/test_compare.py",
    "bench": "test_bench.py",
    "docs/laplace.patch": "test_extending.py",
    "tests/test_statistics.py": "test_statistics.py",
}


def elsewhere(block: Block) -> list[str]:
    return [word for words in commands(block.code) for word in words if word in ELSEWHERE]


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one rank, as torchrun makes it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone", "one_thread")
@pytest.mark.parametrize("page", PAGES)
def test_code_runs_and_prints_what_is_shown(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if page == "large.md":
        pytest.importorskip("transformers")
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"dp": 1, "tp": 1}
    for block in blocks((DOCS / page).read_text()):
        if block.language == "sh" and elsewhere(block):
            continue
        code = block.code.replace('"cuda"', '"cpu"')
        if not find_spec("matplotlib"):
            code = re.sub(r"^.*\.plot\(.*\n| --plot \S+", "", code, flags=re.M)
        printed = run(block._replace(code=code), space)
        assert not [*missing(block.shown, printed)], printed


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_is_there(page: str):
    """Those of benchmarks, which take minutes, are not run: their files must be there, and know the options."""
    for block in blocks((DOCS / page).read_text()):
        assert block.language in ("python", "sh")
        for words in commands(block.code) if block.language == "sh" and not elsewhere(block) else ():
            if words[0] != "xinit":
                (script,) = (word for word in words if word.startswith("benchmarks/"))
                source = (ROOT / script).read_text()
                options = words[words.index(script) + 1 :]
                assert all(f'"{option}"' in source for option in options), words
    for test in ELSEWHERE.values():
        assert (ROOT / "tests" / test).exists() or test in globals()


def test_what_is_not_printed_is_missed():
    printed = "Sequential: 31 layers\n  smallest RMS 2.9e-5 at 60\nlayer  std\n    0  0.126\n"
    assert not [*missing("Sequential: 31 layers\n...\n    0  0.128\n", printed)]
    for shown in ("Sequential: 38 layers", "smallest RMS 2.9e-4 at 60", "    0  0.126\nlayer  std", "Net: 31 layers"):
        assert [*missing(shown, printed)]


def test_the_table_has_the_packages_gains():
    rows = re.findall(r"^\| .*`(\w+)` \| ([\d.]+) \|", (DOCS / "which.md").read_text(), re.M)
    assert len(rows) >= 10
    for name, gain in rows:
        assert float(gain) == pytest.approx(xinit.calculate_gain(name), abs=5e-5), name


def test_every_picture_has_its_command_beside_it():
    shown = set()
    for page in PAGES:
        text = (DOCS / page).read_text()
        code = "".join(block.code for block in blocks(text))
        for picture in re.findall(r"!\[.+\]\((.*)\)", text):
            assert (DOCS / picture).is_file()
            shown.add(Path(picture).name)
            if page != "index.md" and "benchmarks" not in picture:
                drawn = picture.replace("_layers", "")  # compare --train draws two
                assert f"docs/{drawn}" in code or f"docs/draw.py {Path(picture).stem}" in code, picture
    assert {path.name for path in (DOCS / "pictures").iterdir()} <= shown


@pytest.mark.parametrize("picture", ["words", "bound", "family"])
def test_pictures_that_the_guide_draws(picture: str):
    pytest.importorskip("matplotlib")
    import draw

    drawn = draw.PICTURES[picture]()
    assert drawn.get_suptitle()
    drawn.canvas.draw()


@pytest.mark.slow
def test_the_site(tmp_path: Path):
    """Built strictly, by the one command; it names all that is public, and takes nothing from other hosts."""
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-d", tmp_path / "doctrees", "docs", tmp_path / "site"]
    environment = os.environ | {"PYTHONPATH": str(Path(xinit.__file__).parents[1])}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr
    from sphinx.util.inventory import InventoryFile

    with (tmp_path / "site" / "objects.inv").open("rb") as inventory:
        named = {name for kind in InventoryFile.load(inventory, "", lambda base, uri: uri).values() for name in kind}
    public = {f"xinit.{name}" for name in xinit.__all__}
    public |= {f"{room.__name__}.{name}" for room in (xinit.recipes, xinit.parallel) for name in room.__all__}
    assert public <= named, public - named
    for path in (tmp_path / "site").rglob("*"):
        if path.suffix in (".html", ".css", ".js"):
            taken = re.findall(
                r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*|url\(['\"]?(?:https?:)?//[^)]*"
                r"|@import ['\"](?:https?:)?//.*",
                path.read_text(),
            )
            assert not taken, path
