"""Data as users have it: every format and every form of columns gives the same examples, or one line that says why."""

import csv
import gzip
import io
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2wm_jax.cli import main
from e2wm_jax.data.example import Completion, Conversation, Document, TaskExample
from e2wm_jax.data.source import parse_mixture, read_documents, read_examples, read_questions, read_task, read_texts
from e2wm_jax.errors import InputError
from e2wm_jax.running.progress import one_run

ROWS = [{"prompt": "2 + 2 is", "completion": " 4, of course"}, {"prompt": 'say "a,\tb"', "completion": "\na\n\nb\n"}]
MARK = b"\xef\xbb\xbf"


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


FORMATS = {
    "a.jsonl": lines(ROWS),
    "a.json": lines(ROWS),
    "list.json": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=2),
    "data.json": json.dumps({"version": "1", "data": ROWS}, indent=1),
    "data-in-a-line.json": json.dumps({"version": "1", "data": ROWS}),
    "a.csv": table(ROWS),
    "tabs.csv": table(ROWS, "\t"),
    "bars.csv": table(ROWS, "|"),
    "index.csv": table([{"": str(number), **row} for number, row in enumerate(ROWS)]),
    "semicolon.csv": table(ROWS, ";"),
    "a.tsv": table(ROWS, "\t"),
}


def pairs(path: Path, **options: Any) -> list[tuple[str, str]]:
    examples = read_examples(path, **options)
    assert all(isinstance(one, Completion) for one in examples)
    return [(one.prompt, one.completion) for one in examples]


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("mark", [b"", MARK], ids=["", "mark"])
@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, mark: bytes, end: str, tmp_path: Path) -> None:
    content = mark + FORMATS[name].encode()
    (tmp_path / f"{name}{end}").write_bytes(gzip.compress(content) if end else content)
    assert pairs(tmp_path / f"{name}{end}") == [tuple(row.values()) for row in ROWS]


def test_parquet_and_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = datasets.Dataset.from_list(ROWS)
    made.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(tmp_path / "parts")
    asked = []
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, name, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: asked.append((path, options)) or made)
    expected = [tuple(row.values()) for row in ROWS]
    for path in (tmp_path / "a.parquet", tmp_path / "saved", tmp_path / "parts", Path("org/name?name=main")):
        assert pairs(path) == expected
    assert asked == [("org/name", {"name": "main"})]
    assert [example.where for example in read_examples(tmp_path / "a.parquet")] == [
        f"{tmp_path / 'a.parquet'}: row {number}" for number in (1, 2)
    ]

    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    datasets.Dataset.from_list([talk]).to_parquet(tmp_path / "chat.parquet")
    (example,) = read_examples(tmp_path / "chat.parquet")
    assert list(example.messages) == talk["messages"]

    datasets.DatasetDict(validation=made, test=made).save_to_disk(tmp_path / "other")
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: 1 / 0)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"x" * 99)
    (tmp_path / "none.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for name, message in {
        "other/typo": "^other/typo: no such file$",
        str(tmp_path / "other"): "has the parts validation, test and no train; save the one",
        str(tmp_path): "is a directory; give a file, or a folder that save_to_disk",
        "org/name": "no such file, and no data set of the hub",
        "org/name?part=x": "no option part; options of data sets: split, name, revision",
        str(tmp_path / "bad.parquet"): "no readable Parquet file",
        str(tmp_path / "none.parquet"): "no readable Parquet file",
        str(tmp_path / "gone.parquet"): "no such file",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_examples(Path(name))
        assert "\n" not in str(caught.value)


ASKED = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
FORMS = {
    "task": ({"input": "a?", "ref": "b"}, TaskExample("a?", "b", 1.0, "")),
    "completion": ({"prompt": "a?", "completion": "b"}, Completion("a?", "b", 1.0, "")),
    "turns": ({"prompt": ASKED[:1], "completion": ASKED[1:]}, Conversation(ASKED, 1.0, "", prompt=1)),
    "instruction": (
        {"instruction": "a?", "input": "", "output": "b"},
        Completion("### Instruction:\na?\n\n### Response:\n", "b", 1.0, ""),
    ),
    "instruction with input": (
        {"instruction": "a?", "input": "x", "output": "b"},
        Completion("### Instruction:\na?\n\n### Input:\nx\n\n### Response:\n", "b", 1.0, ""),
    ),
    "instruction and response": (
        {"instruction": "a?", "context": None, "response": "b", "category": "c"},
        Completion("### Instruction:\na?\n\n### Response:\n", "b", 1.0, ""),
    ),
    "messages": ({"messages": ASKED, "prompt": "unused"}, Conversation(ASKED, 1.0, "")),
    "conversations": (
        {"id": "7", "conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
        Conversation(ASKED, 1.0, ""),
    ),
    "question": ({"question": "a?", "answer": "b"}, Completion("a?", " b", 1.0, "")),
    "text": ({"text": " a\n", "id": 3}, Document(" a\n", 1.0, "")),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str, tmp_path: Path) -> None:
    row, expected = FORMS[name]
    (tmp_path / "a.jsonl").write_text(lines([row]))
    (found,) = read_examples(tmp_path / "a.jsonl", 0.5)
    where = {"weight": 0.5, "where": f"{tmp_path / 'a.jsonl'}:1"}
    assert found == type(expected)(**{**vars(expected), **where})


@pytest.mark.parametrize(
    "name", ["task", "completion", "turns", "instruction", "messages", "conversations", "question"]
)
def test_rows_as_turns(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([FORMS[name][0]]))
    (found,) = read_examples(tmp_path / "a.jsonl", chat=True)
    assert isinstance(found, Conversation)
    assert list(found.messages) == ASKED


def test_an_instruction_and_what_it_is_about_are_one_turn(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([FORMS["instruction with input"][0]]))
    (found,) = read_examples(tmp_path / "a.jsonl", chat=True)
    assert [message["content"] for message in found.messages] == ["a?\n\nx", "b"]


def test_texts_have_no_turns(tmp_path: Path) -> None:
    for name, content in (("a.txt", "text"), ("a.jsonl", '{"text": "a"}')):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=r"--chat: .* no turns; leave it out"):
            read_examples(tmp_path / name, chat=True)


def test_columns_say_what_names_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,q,a,text\n1,What?,That.,x\n2,Who?,I.,y\n")
    assert pairs(path, columns="prompt=q,completion=a") == [("What?", "That."), ("Who?", "I.")]
    assert pairs(path, columns=" question = q , answer = a ") == [("What?", " That."), ("Who?", " I.")]
    assert [one.text for one in read_examples(path, columns="text=a")] == ["That.", "I."]
    assert read_documents(str(path), columns="text=q") == ["What?", "Who?"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{path}: CSV of prompt, completion (--columns prompt=q,completion=a), 2 examples"
    for columns, message in {
        "prompt=q": "these do not belong together; forms are input, ref; prompt, completion; messages",
        "prompt=q,completion=z": r"--columns completion=z: no such column; there are id, q, a, text",
        "promt=q": "'promt' is none of answer, completion, context, conversations, input",
        "prompt": "write NAME=COLUMN,NAME=COLUMN",
        "prompt=q,prompt=a": "each name once",
        "prompt=,completion=a": "write NAME=COLUMN",
    }.items():
        with pytest.raises(InputError, match=message):
            read_examples(path, columns=columns)


def test_what_was_recognized_is_said_once_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([FORMS["task"][0]] * 3))
    said = f"{path}: JSON list of input, ref, 3 examples\n"
    for _ in range(2):  # in the next run again
        with one_run():
            for _ in range(2):
                read_examples(path)
        assert capsys.readouterr().err == said
    for _ in range(2):  # a caller of the library is told each time
        read_examples(path)
    assert capsys.readouterr().err == 2 * said


def test_what_plain_text_holds_is_said_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blank lines part it, which shows in the number."""
    path = tmp_path / "notes.txt"
    path.write_text("Mary walks.\nShe sits.\n\nThe cup.\n", encoding="utf-8")
    assert len(read_examples(path)) == 2
    assert capsys.readouterr().err == f"{path}: text, 2 documents\n"


def test_general_text_is_read_out_of_every_form(tmp_path: Path) -> None:
    texts = {}
    for name, (row, _) in FORMS.items():
        (tmp_path / "a.jsonl").write_text(lines([row]))
        ((where, texts[name]),) = read_texts(str(tmp_path / "a.jsonl"))
        assert where == f"{tmp_path / 'a.jsonl'}:1"
    assert texts["task"] == texts["question"] == "a? b"
    assert texts["completion"] == "a?b"
    assert texts["messages"] == texts["conversations"] == texts["turns"] == "a?\n\nb"
    assert texts["text"] == " a\n"


LONG = '{"text": "' + "x" * 3_000_000 + '"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": "b \\ud83d"}', r"a\.json:2: not valid JSON \(half of a surrogate pair, '\\ud83d'"),
        ('{"text": "a"}\n{"\\udc00": 1, "text": "b"}', r"a\.json:2: not valid JSON \(half of a surrogate"),
        ('[{"text": "b \\uDC00"}]', r"a\.json: row 1: not valid JSON \(half of a surrogate"),
        ('{"text": "a", "id": ' + "1" * 5000 + "}", r"a\.json:1: not valid JSON \(a number of thousands of digits\)"),
        ('{"text": "a", "x": ' + "[" * 99999 + "]" * 99999 + "}", r"a\.json:1: not valid JSON \(nested too deeply\)"),
        ("[" * 99999 + "]" * 99999, r"a\.json: row 1: not valid JSON \(nested too deeply\)"),
        ('{"text": "a", "text": "b"}', r"a\.json:1: not valid JSON \(the key 'text' stands twice\)"),
        ('{"text": "a",}', r"a\.json:1: not valid JSON \("),
        ('[{"text": "a"},\n]', r"a\.json:[12]: not valid JSON \("),
        ('{"text": "a\0b"}', r"a\.json:1: holds a NUL byte"),
        ("text, more text", r"a\.json:1: not valid JSON \(starts with 't'\); name plain text \*\.txt, tables \*\.csv"),
        ('{"text": null}', r"a\.json:1: the key 'text' is NoneType, not a string"),
        ('{"text": 3}', r"a\.json:1: the key 'text' is int, not a string"),
        ('{"text": "a"}\n{"txt": "b"}', r"a\.json:2: the key 'text' is missing"),
        ('{"text": "a"}\n"b"', r"a\.json:2: expected a JSON object, found str"),
        ("[1]", r"a\.json: row 1: expected a JSON object, found int"),
        ("[]", r"a\.json: no (rows|documents)"),
        ("{}", r"a\.json: columns \(none\) are of no known form"),
        ("", r"a\.json: no (rows|documents)"),
        (" \n\r\n\n", r"a\.json: no (rows|documents)"),
        ('{"text": ""}\n{"text": "\\n"}', r"a\.json: no documents; every text is blank"),
        ('{"a": 1, "b": 2}', r"a\.json: columns a, b are of no known form \(input, ref; prompt, completion; mess"),
        ('{"nr": 1, "a": 1, "b": 2}', r"; text\); say which are which, e\.g\. --columns prompt=a,completion=b"),
        (json.dumps(dict.fromkeys(map(str, range(99)), "")), r"columns 0, 1, .*11 and 87 more are of no known form"),
        ('{"messages": []}', r"a\.json:1: the key 'messages' must be a list of turns with 'role' and 'content'"),
        ('{"messages": "Hi"}', r"a\.json:1: the key 'messages' must be a list of turns"),
        ('{"messages": ["Hi"]}', r"a\.json:1: turn 1 of 'messages': must be an object with 'role' and 'content'"),
        ('{"messages": [{"content": "Hi"}]}', r"turn 1 of 'messages': the key 'role' is missing"),
        ('{"messages": [{"role": "assistant"}]}', r"turn 1 of 'messages', of role 'assistant': no text under 'cont"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', r"a\.json:1: no turn of the assistant, so nothing to le"),
        ('{"conversations": [{"from": "human", "value": 3}]}', r"turn 1 of 'conversations', of role 'user': no text"),
        ('{"prompt": ["a"], "completion": "b"}', r"a\.json:1: turn 1 of 'prompt': must be an object"),
        ('{"prompt": "a", "completion": ["b"]}', r"a\.json:1: the key 'completion' is list, not a string"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "tools": "["}', r"'tools' is not valid JSON"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "tools": 3}', r"'tools' must be a list of objects"),
        ('{"instruction": "a", "output": 1}', r"a\.json:1: the key 'output' is int"),
        (LONG + "{", r"a\.json:2: not valid JSON"),
        (
            json.dumps({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}),
            r"a\.json:1: turn 1 of 'messages', of role 'assistant': 'content' holds a part of type 'image'; only text",
        ),
        ('{"messages": [{"role": "assistant", "content": [3]}]}', r"'content' holds a part of type 'int'"),
        ('{"messages": [{"role": "assistant", "content": []}]}', r"no text under 'content'"),
    ],
    ids=lambda value: None,
)
def test_what_cannot_be_read_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    for read in (read_examples, lambda path: read_texts(str(path))):
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path / "a.json")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04zip", "is a zip archive; unpack it"),
        (b"%PDF-1.7", "is a PDF"),
        (b"PAR1....", r"is a Parquet file; name it \*\.parquet"),
        ("caf\u00e9".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("text".encode("utf-16-le"), ":1: holds a NUL byte"),
        ("caf\u00e9 au lait".encode("latin-1"), r"not UTF-8 text \(byte 3\)"),
        (b"BZh91AY", "is compressed by bzip2"),
        (gzip.compress(b"text", mtime=0)[:-3], "damaged gzip archive"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt"])
def test_files_that_are_no_text_are_named_for_what_they_are(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}:? ?.*{message}"):
        read_examples(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\n\n", "no rows"),
        ("text,text\na,b\n", r"a\.csv:1: the first line must name every column, each otherwise; found text, text"),
        ("text,,\na,b,c\n", r"a\.csv:1: the first line must name every column"),
        ("text,id\na,b,c\n", r"a\.csv:2: 3 columns, the first line names 2"),
        ('text,id\n"a\nb",1\nc\n', r"a\.csv:4: 1 columns, the first line names 2"),
        ('text\n"a\n', r"a\.csv:2: not valid CSV \(unexpected end of data\)"),
        ('text\n"a"b\n', r"a\.csv:2: not valid CSV"),
    ],
)
def test_tables_that_cannot_be_read(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_examples(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000 + "a.json"])
def test_names_that_no_file_can_have(name: str) -> None:
    for read in (parse_mixture, lambda name: read_examples(Path(name)), read_texts, lambda name: read_task(Path(name))):
        with pytest.raises(InputError, match="no file ") as caught:
            read(name)
        assert len(str(caught.value)) < 200


def test_a_long_cell_and_a_long_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 200_000}\n")
    (tmp_path / "a.jsonl").write_text(LONG)
    assert [len(one.text) for name in ("a.csv", "a.jsonl") for one in read_examples(tmp_path / name)] == [
        200_000,
        3_000_000,
    ]


def test_plain_text_without_its_mark_and_with_any_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.TXT"
    path.write_bytes(MARK + b"\r\none\r\ntwo\r\n\r\n \t\r\nthree\rfour\r\n")
    assert read_texts(str(path)) == [(f"{path}:2", "one\ntwo"), (f"{path}:6", "three\nfour")]
    assert read_examples(path) == [Document("one\ntwo", 1.0, f"{path}:2"), Document("three\nfour", 1.0, f"{path}:6")]


COLUMNS = ("input", "ref", "prompt", "completion", "messages", "conversations", "instruction", "output", "response")
MORE = ("text", "tools", "question", "answer", "answer_list", "context", "x", "\0", "")
TURN = ("role", "content", "from", "value", "tool_calls")
ATOMS = (None, True, 0, -1.5, float("nan"), 10**400, "", " ", "a", "\n\n", "\u2028", "\0", "\ud83d", "\U0001f600", "[")


def any_value(rng: Random, depth: int = 0) -> Any:
    kind = rng.randrange(8)
    if kind == 0 and depth < 3:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 1 and depth < 3:
        keys = rng.sample(TURN, rng.randrange(4))
        return {key: rng.choice(("user", "assistant")) if rng.random() < 0.5 else any_value(rng, 3) for key in keys}
    return [{"role": "assistant", "content": any_value(rng, 3)}] if kind == 2 else rng.choice(ATOMS)


def any_row(rng: Random) -> dict[str, Any]:
    names = rng.sample(COLUMNS + MORE, rng.randrange(4))
    if rng.random() < 0.7:
        names += rng.choice([row for row, _ in FORMS.values()])
    return {name: "a" if rng.random() < 0.4 else any_value(rng) for name in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=2000, deadline=None)
@given(st.integers(0, 2**64))
def test_any_rows_are_examples_or_one_line(folder: Path, seed: int) -> None:
    rng = Random(seed)  # hypothesis would take a minute to draw them piece by piece
    found, name = [any_row(rng) for _ in range(rng.randint(1, 2))], rng.choice(("a.jsonl", "b.json", "c.csv"))
    if name == "a.jsonl":
        content = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in found)
    elif name == "b.json":
        content = json.dumps(found)
    else:
        content = "\n".join(",".join(map(str, part)) for row in found for part in (row, row.values()))
    if rng.random() < 0.25:  # damaged
        place = rng.randrange(len(content) + 1)
        content = content[:place] + rng.choice(("", "{", '"', "\r", "\\", ",")) + content[place + rng.randrange(3) :]
    chat = rng.random() < 0.3
    path = folder / name
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    for read in (
        lambda: read_examples(path, chat=chat),
        lambda: read_texts(str(path)),
        lambda: read_task(path),
        lambda: read_questions(path),
    ):
        try:
            assert read()
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_that_is_a_row_is_no_list_of_rows(indent: int | None, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for row in ({"messages": turns}, {"text": "a", "marks": [{"from": 0}]}):
        (tmp_path / "a.json").write_text(json.dumps(row, indent=indent))
        (example,) = read_examples(tmp_path / "a.json")
        assert getattr(example, "messages", None) == row.get("messages")


def test_text_in_parts_is_that_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "b "}, {"type": "text", "text": "c"}]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": parts}]
    (tmp_path / "a.json").write_text(json.dumps({"messages": talk}))
    (example,) = read_examples(tmp_path / "a.json")
    assert isinstance(example, Conversation)
    assert example.messages == [talk[0], {"role": "assistant", "content": "b c"}]
    assert read_documents(str(tmp_path / "a.json")) == ["a\n\nb c"]


def test_marks_of_joined_files_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(MARK + b"a\r\n\r\n" + MARK + b"b")
    (tmp_path / "a.jsonl").write_bytes((MARK + b'{"text": "a"}\n') * 2)
    assert read_documents(str(tmp_path / "a.txt")) == ["a", "b"]
    assert read_documents(str(tmp_path / "a.jsonl")) == ["a", "a"]


def test_columns_that_are_not_read_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    (tmp_path / "a.json").write_text(json.dumps({"conversations": talk, "system": "Be brief.", "tools": None}))
    (tmp_path / "b.json").write_text(json.dumps({"instruction": "a", "context": "b", "output": "c"}))
    read_examples(tmp_path / "a.json")
    read_examples(tmp_path / "b.json")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("a.json: JSON lines of conversations, 1 example; not read: system")
    assert second.endswith("b.json: JSON lines of instruction, output, 1 example")


# ------------------------------------------------------------------------------------- rows of lists and indented files

GOOD = '{"input": "a", "ref": "b"}'
INDENTED = '{\n  "input": "a",\n  "ref": "b"\n}'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'[{GOOD},\n{GOOD[:-1]}, "input": "c"}}]', r": row 2: not valid JSON \(the key 'input' stands twice\)"),
        (f'[{GOOD}, {{"input": "\\ud800", "ref": "b"}}]', r": row 2: not valid JSON \(half of a surrogate pair"),
        (f'[{GOOD}, {GOOD}, {{"input": {"9" * 5000}}}]', r": row 3: not valid JSON \(a number of thousands of digits"),
        (f'[{GOOD},\n{{"input": {"[" * 200}{"]" * 200}}}]', r": row 2: not valid JSON \(nested too deeply"),
        (f"[{GOOD},\n{INDENTED},\n{INDENTED[:-3]}\n}}]", r":8: not valid JSON \(.*, in row 3\)"),
        (f"[{GOOD},\n{GOOD}", r":2: not valid JSON \(Expecting ',' delimiter at column \d+, in row 3\)"),
        (f"[{GOOD}, 3]", r": row 2: expected a JSON object, found int"),
        (
            f'{{"version": "1.0 [b]", "data": [{GOOD},\n{GOOD[:-1]}, "ref": "c"}}]}}',
            ": row 2: not valid JSON .*'ref' stands",
        ),
        (f'{{"data": [{GOOD}, 3]}}', r": row 2: expected a JSON object, found int"),
        (INDENTED.replace('"b"', '"b",\n  "ref": "c"'), r": row 1: not valid JSON \(the key 'ref' stands twice\)"),
        (INDENTED.replace('"b"', '"\\ud800"'), r": row 1: not valid JSON \(half of a surrogate pair"),
        (INDENTED.replace('"a",', '"a"'), r":3: not valid JSON \(Expecting ',' delimiter at column 3, in row 1\)"),
        (f"{INDENTED}\n{INDENTED}", r":5: a second JSON value begins here; give each object a line, or all one list"),
        (
            '{\n"messages": [\n{"role": "user"},\n{"role": }]}',
            r":4: not valid JSON \(Expecting value at column 10, in row 1\)",
        ),
        (f"{GOOD}\n{GOOD[:-1]}", r":2: not valid JSON .*each line must be one object"),
        (f"{GOOD[:-1]}\n{GOOD}", r":1: not valid JSON .*each line must be one object"),
    ],
)
def test_what_is_wrong_in_a_list_is_found_by_its_row(text, says, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}{says}"):
        read_examples(path)


# -------------------------------------------------------------------------------------------------------------- columns


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"q": "What?", "a": "That."}\n{"q": 3}\n')
    Path("list.json").write_text('[{"q": "What?", "a": "That."}]')
    Path("t.csv").write_text("q,a\nWhat?,That.\n")
    Path("prose.txt").write_text("Once upon a time.")
    return tmp_path


TRAIN = ["train", "--model", "m", "--out", "o"]


MIXED = [
    [*TRAIN, "--data"],
    [*TRAIN, "--data", "a.jsonl", "--validation"],
    ["sequence", *TRAIN[1:], "--tests", "a.jsonl", "--tasks"],
]
LISTED = [["fisher", *TRAIN[1:], "--data"], ["eval", "perplexity", "--model", "m", "--data"]]


@pytest.mark.parametrize(
    ("command", "data"),
    [
        *((command, data) for command in MIXED + LISTED for data in ("a.jsonl", "list.json", "t.csv")),
        *((command, "1 prose.txt 1 t.csv") for command in MIXED),
    ],
)
def test_a_column_that_is_not_there_is_refused_before_anything_is_loaded(command, data, tables, monkeypatch, capsys):
    monkeypatch.setattr("e2wm_jax.cli._run", lambda *_: pytest.fail("the program was loaded"))
    for columns in ("prompt=foo,completion=a", "text=foo"):
        assert main([*command, data, "--columns", columns]) == 2
        role = columns.partition("=")[0]
        assert f": --columns {role}=foo: no such column; there are q, a" in capsys.readouterr().err
    with pytest.raises(pytest.fail.Exception):
        main([*command, data, "--columns", "prompt=q,completion=a"])


@pytest.mark.parametrize("data", ["prose.txt", "pydoc:fisher", "online:act_recog"])
def test_columns_of_plain_text_are_refused(data, tables, capsys):
    assert main([*TRAIN, "--data", data, "--columns", "prompt=q,completion=a"]) == 2
    assert "--columns prompt=q,completion=a: plain text and online tasks have no columns" in capsys.readouterr().err
