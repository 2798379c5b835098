"""The documentation against the program: code runs, commands parse, links lead somewhere, tables are true."""

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import api_reference
import command_reference
import independent_scores
import pytest

from e2wm_jax import cli
from e2wm_jax.cli import COMMANDS, main
from e2wm_jax.options.names import NEAR, SAME
from e2wm_jax.train.settings import TrainSettings
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.oracle import virtualhome

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
REFERENCE = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/api/*.md"))
KERNELS = "kernels/README.md"  # its code is for devices that are not here
LANGUAGES = {"python", "sh", "json", "toml", "bibtex", "text"}  # text: what is no code, or cannot be run
ELSEWHERE = (
    "CONTRIBUTING.md",
    "docs/torch.md",
)  # their Python is run by test_regularizers_documented, test_library_torch

# The documentation's commands, made small: these options are replaced or added.
SMALLER = {
    "collect --policy mcts": "--episodes 100 --simulations 60 --workers 1",
    "collect --policy random": "--episodes 8 --workers 1",
    "fisher": "--samples 4 --max-length 32",
    "train": "--steps 2 --batch-size 2",
    "eval qa": "--samples 2 --predictions qa.jsonl",
    "eval generate": "--samples 2 --max-new-tokens 2 --predictions generated.jsonl",
    "eval perplexity": "--samples 4 --max-length 32",
    "eval plans --model": "--samples 2 --max-new-tokens 2",
    "eval all": "--samples 2 --max-new-tokens 2",
    "generate": "--max-new-tokens 2",
    "collect --policy mcts --out exp/more": "--episodes 4 --scene procedural:1",
    "compare": "--regularizers none,ewc --strengths ewc:1e3 --seeds 0 --steps 1 --samples 1 --max-new-tokens 2 "
    "--beams 1 --text-samples 2 --text-max-length 16 --general-samples 2 --max-length 700 --batch-size 1",
    "sequence": "--steps 1 --batch-size 1 --max-length 32",
    "eval embodied-agent": "--samples 1 --max-new-tokens 2",
}
EVERYWHERE = {"--help", "--json", "--config", "--print-config", "--no-compilation-cache"}
MODEL_NAMES = {"smollm2-135m", "my-model", "M"}
# Pages whose commands are run; those of the others are for clusters, or for data that we may not ship.
RUN = ("docs/compare.md", "docs/evaluation.md", "docs/regularizers.md", "docs/world.md")
NEEDS_A_HUB = "eval harness"
TEXT = "Mary walks to the kitchen.\n\nThe apple is on the table.\n\nMary grabs the apple.\n"


class Block(NamedTuple):
    """What stands between two fences."""

    language: str
    code: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words; of one that is given to another, such as ssh, too."""
    for line in code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", "|", ";"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)
                if "e2wm " in word:
                    yield from commands(word)


def e2wm(words: list[str]) -> list[str] | None:
    """What is behind `e2wm` in a command: environment, `srun` and the like may stand before it."""
    at = next((index for index, word in enumerate(words) if Path(word).name == "e2wm"), None)
    return None if at is None else words[at + 1 :]


def command_of(words: list[str]) -> str:
    return next(name for name in COMMANDS if words[: len(name.split())] == name.split())


# ---------------------------------------------------------------------------------------------------------- what is run


def smaller(words: list[str]) -> list[str]:
    """A command of the documentation with the options of SMALLER."""
    for start, options in SMALLER.items():
        if words[: len(start.split())] == start.split():
            for option, values in options_of(options.split()).items():
                at = words.index(option) if option in words else len(words)
                until = next((n for n in range(at + 1, len(words)) if words[n].startswith("--")), len(words))
                words = [*words[:at], option, *values, *words[until:]]
    return words


def options_of(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[word] = []
        else:
            found[[*found][-1]].append(word)
    return found


@pytest.fixture(scope="module")
def models(
    save_llama: Callable[..., Any], tiny_tokenizer: Any, quick_compilation: None, tmp_path_factory: Any
) -> dict[str, str]:
    """A small model for each that the documentation names; it knows words of the prompts, which are long."""
    folder = tmp_path_factory.mktemp("models") / "small"
    texts = [read("docs/formats.md"), *map(Path.read_text, ROOT.glob("e2wm_jax/tasks/**/*.py"))]
    tokenizer = tiny_tokenizer.train_new_from_iterator(texts, 2048, show_progress=False)
    save_llama(folder, max_position_embeddings=16384, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(turns + "{% if add_generation_prompt %}assistant: {% endif %}")
    return dict.fromkeys(MODEL_NAMES, str(folder))


def run_python(code: str, names: dict[str, Any], models: dict[str, str]) -> None:
    for name, folder in models.items():
        code = code.replace(f'"{name}"', repr(folder))
    exec(compile(code, "<documentation>", "exec"), names)


@pytest.fixture(scope="module")
def readme(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user who has followed the README from top to bottom, with a small model and small numbers."""
    if not (virtualhome.is_installed() and scenes.has_robothow()):
        pytest.skip("virtualhome and virtualhome-eval are not installed: run make setup")
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my-text.txt").write_text(TEXT)
    turns = [{"role": "user", "content": "Where is the cup?"}, {"role": "assistant", "content": "Here."}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    names: dict[str, Any] = {"__name__": "readme"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks("README.md"):
            if block.language == "python":
                run_python(block.code, names, models)
            for words in map(e2wm, commands(block.code) if block.language == "sh" else ()):
                if words is not None:
                    given = [models.get(word, word) for word in smaller(words)]
                    assert main(given) == 0, given
    return folder


@pytest.mark.slow
def test_a_new_user_who_follows_the_readme_has_an_adapter_and_a_model(readme):
    from e2wm_jax.evaluate.model import load_evaluated

    for name in ("run/adapter", "my-run/adapter"):
        assert (readme / name / "adapter_model.safetensors").is_file()
    assert len((readme / "my-run/metrics.jsonl").read_text().splitlines()) == 2
    for name in ("merged", "my-merged-model"):
        load_evaluated(str(readme / name))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in read(page) and page not in ("README.md", *ELSEWHERE)]
)
def test_python_blocks_run(page, request, tmp_path, monkeypatch):
    """In the order of the page, each with the names of those before it."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page}
    found = [block.code for block in blocks(page) if block.language == "python"]
    models = request.getfixturevalue("models") if MODEL_NAMES & set(re.findall(r'"([\w-]+)"', "".join(found))) else {}
    for code in found:
        run_python(code, names, models)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page, readme, models, tmp_path, monkeypatch, capsys):
    """Where the README has been followed, and with small files under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"input": f"Where is cup {n}?", "ref": "kitchen"}) + "\n" for n in range(2))
    for name in ("plan", "recog", "train/plan", "train/count", "eval/plan", "eval/count"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(f"{name}.json").write_text(rows)
    for name in ("general.jsonl", "held-out.jsonl"):
        Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXT.split("\n\n")))
    Path("plan.txt").write_text("[Walk] <home_office> (319)")
    if page != "docs/world.md":
        for name in ("tasks", "run"):
            Path(name).symlink_to(readme / name)
        Path("e2wm-data").symlink_to(readme / "tasks")
    for words in (words for block in blocks(page) if block.language == "sh" for words in commands(block.code)):
        if words[0] == "python":
            assert independent_scores.main(words[2:]) == 0, capsys.readouterr().out
        given = e2wm(words) or []
        if given and "..." not in given and given[:2] != NEEDS_A_HUB.split():
            named = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in smaller(given)]
            assert main([models.get(word, word) for part in named for word in part]) == 0, given


# ------------------------------------------------------------------------------------------------- what only has to fit


@pytest.mark.parametrize("page", [*PAGES, KERNELS])
def test_blocks_say_what_they_are(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"name the language of this block, one of {LANGUAGES}:\n{block.code}"
        if block.language == "json":
            json.loads(block.code)
        if block.language == "toml":
            tomllib.loads(block.code)
        if block.language == "python" and page not in ELSEWHERE:
            ast.parse(block.code)


@pytest.mark.parametrize("page", [*PAGES, KERNELS])
def test_commands_parse(page):
    """`...` stands for the required options that are left out."""
    shell = [words for block in blocks(page) if block.language == "sh" for words in commands(block.code)]
    for words in filter(None, map(e2wm, shell)):
        name = command_of(words)
        given = [word for word in words[len(name.split()) :] if word not in ("...", "--json")]
        if "..." in words:
            required = [
                option for option in command_reference.all_options(name) if option.default == command_reference.REQUIRED
            ]
            given += [part for option in required if option.name not in given for part in (option.name, "something")]
        cli._parse(name, given)


@pytest.mark.parametrize("page", [*PAGES, KERNELS])
def test_other_commands_exist(page):
    makefile = read("Makefile")
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    for words in (words for block in blocks(page) if block.language == "sh" for words in commands(block.code)):
        if words[0] == "make":
            (target,) = [word for word in words[1:] if "=" not in word]
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), words
        if words[0].startswith("python") and words[1].endswith(".py"):
            given = {word for word in words if word.startswith("--")}
            assert given <= script_options(ROOT / words[1]), words
    for extra in re.findall(r"e2wm_jax\[(\w+)\]", read(page)):
        assert extra in extras, extra


def script_options(path: Path) -> set[str]:
    """The options that a script adds to its parser."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {word.value for call in added for word in call.args if isinstance(word, ast.Constant)}


def test_other_names_are_all_on_their_page():
    rows = dict(re.findall(r"^\| `--(\S+)` \| (.*) \|$", read("docs/options.md"), re.MULTILINE))
    assert {name: tuple(re.findall(r"`--(\S+)`", others)) for name, others in rows.items()} == SAME


@pytest.mark.parametrize("page", [*PAGES, KERNELS])
def test_commands_and_options_in_the_text_exist(page):
    if page == "CHANGELOG.md":
        return  # speaks of what was
    known = {name: option_names(name) | EVERYWHERE for name in COMMANDS}
    every = set().union(*known.values()) | {"--version"}
    if page == "docs/options.md":  # speaks of other names too
        every |= {f"--{name}" for name in {*NEAR, *chain(*SAME.values())}}
    foreign = {"--no-deps", "--signal", "--apply_chat_template", "--fewshot_as_multiturn"}  # pip's, sbatch's, lm-eval's
    for _, code in re.findall(r"(`+)(.+?)\1", prose(page).replace("\n", " ")):
        options = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", code)) - foreign
        found = re.match(r"e2wm ([a-z]+(?: [a-z]+)?)", code)
        names = [name for name in COMMANDS if found and re.match(rf"{name}\b", found[1])]
        family = found and any(name.startswith(f"{found[1].split()[0]} ") for name in COMMANDS)
        assert names or family or not found, f"{page}: no such command: {code}"
        missing = options - set().union(*(known[name] for name in names)) if names else options - every
        assert not missing, f"{page}: {code} has {missing}"


def option_names(command: str) -> set[str]:
    """Those of the page; options without a value under both their names."""
    found = command_reference.all_options(command)
    names = {name for option in found for name in (option.name, option.opposite) if name is not None}
    return {name for name in names if name.startswith("--")}


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower()).replace(" ", "-")


@cache
def anchors(page: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE, KERNELS])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page))):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT).as_posix()), f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page in [*PAGES, KERNELS] if page != "CHANGELOG.md"])
def test_files_that_the_text_names_exist(page):
    for name in re.findall(r"`((?:tests|scripts|docs|kernels)/[\w/.-]+\.\w+)(?:::\w+)?`", prose(page)):
        assert (ROOT / name).exists(), f"{page}: {name}"


# ------------------------------------------------------------------------------------------------------ what is written


def test_the_command_line_page_is_that_of_the_settings():
    found = command_reference.render()
    assert found == read("docs/command-line.md"), "docs/command-line.md is out of date: run `make docs`"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_are_those_of_the_program(name, capsys, monkeypatch):
    """The page is made from the sources, the help by tyro: options begin lines, further right is text."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*name.split(), "--help"]) == 0
    rows = re.findall(r"^[ │|] (--?[a-z].*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    shown = {option for row in rows for option in re.findall(r"--[a-z][\w.-]*", row)}
    assert option_names(name) == shown - {"--help"}


def test_the_reference_is_that_of_the_docstrings():
    pages = api_reference.render()
    on_disk = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md")}
    different = sorted(path.name for path in {*pages, *on_disk} if pages.get(path) != on_disk.get(path))
    assert not different, f"docs/api is out of date ({different}): run `make docs`"


def test_every_public_function_and_class_has_a_docstring():
    missing = []
    for name, path in api_reference.modules():
        tree = api_reference.tree_of(path)
        missing += [name] if not ast.get_docstring(tree) else []
        missing += [f"{name}.{node.name}" for node in api_reference.public(tree.body) if not ast.get_docstring(node)]
    assert not missing


# -------------------------------------------------------------------------------------------------------------- formats


def documented(heading: str) -> set[str]:
    """Keys in the first table below a heading of docs/formats.md."""
    section = re.split(rf"^### {re.escape(heading)}$", read("docs/formats.md"), flags=re.MULTILINE)[1]
    table = section.split("| key | |", 1)[1].split("\n\n", 1)[0]
    return {key for row in table.splitlines()[2:] for key in re.findall(r"`([^`]+)`", row.split(" | ")[0])}


def keys(path: Path) -> set[str]:
    """Of a JSON object, or of all rows of JSON lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return set(json.loads(text))
    rows = [set(json.loads(line)) for line in text.splitlines()]
    assert all(row == rows[0] for row in rows)
    return rows[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heading", "file"),
    [
        ("manifest.json", "exp/mcts/manifest.json"),
        ("manifest.json", "exp/random/manifest.json"),
        ("An episode", "exp/mcts/shard-00000.jsonl"),
        ("An episode", "exp/random/shard-00000.jsonl"),
        ("statistics.json", "tasks/statistics.json"),
        ("fisher.json", "fisher/fisher.json"),
        ("metrics.jsonl", "run/metrics.jsonl"),
        ("qa predictions", "qa.jsonl"),
        ("generate predictions", "generated.jsonl"),
    ],
)
def test_files_have_the_documented_keys(readme, heading, file):
    assert keys(readme / file) == documented(heading)


@pytest.mark.slow
def test_a_run_directory_holds_what_is_documented(readme):
    record = json.loads((readme / "run/config.json").read_text())
    assert set(record) == {*TrainSettings.__dataclass_fields__, "content"} - {"resume"}
    assert sorted(path.name for path in (readme / "run").iterdir()) == [
        *("adapter", "checkpoints", "config.json", "metrics.jsonl", "report.html"),
    ]
    assert {path.name for path in (readme / "run/checkpoints/2").iterdir()} >= {"state", "position"}
    assert {path.name for path in (readme / "fisher").iterdir()} == {
        *("config.json", "fisher.json", "model.safetensors", "report.html"),
    }


@pytest.mark.slow
def test_a_sequence_directory_holds_what_is_documented(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        rows = [{"input": f"Where is {name}?", "ref": "kitchen"}] * 2
        Path(f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = "--steps 1 --batch-size 2 --max-length 32 --lora.targets q_proj --lora.rank 2"
    tasks = "--tasks a.json b.json --tests a.json b.json --validation a.json"
    assert main(["sequence", "--model", models["my-model"], "--out", "seq", *tasks.split(), *sizes.split()]) == 0
    assert keys(Path("seq/sequence.json")) == documented("sequence.json")
    scores = json.loads(Path("seq/sequence.json").read_text())["scores"]
    assert {f"`{name}`" for name in scores} <= set(re.findall(r"`\w+`", read("docs/formats.md")))
    assert keys(Path("seq/task-1/validation.jsonl")) == documented("validation.jsonl")
    assert {path.name for path in Path("seq").iterdir()} >= {"task-1", "task-2", "adapter", "report.html"}
