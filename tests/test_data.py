"""Text to rows: what is read, which errors name which line, and which tokens are predicted."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import byte_tokenizer

from e2wm_jax.data.batch import collate
from e2wm_jax.data.example import Completion, Document, Question, TaskExample
from e2wm_jax.data.online.held_out import held_out
from e2wm_jax.data.online.names import OnlineTask, parse_online
from e2wm_jax.data.source import (
    online_tasks,
    parse_mixture,
    read_documents,
    read_mixture,
    read_questions,
    read_task,
)
from e2wm_jax.data.tokenize import document_rows, encode, encode_prompts, task_rows
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.questions.answer_rows import pack
from e2wm_jax.tasks.household.plan import TaskPlan

PLAN = {"input": "How to make tea?", "ref": "1. Walk to the kitchen"}
QUESTION = {"input": "Where is the plate?", "answer": "table", "answer_list": ["fridge", "table", "sofa"]}


def write_lines(path: Path, *records: Any) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    text = "".join(f"{line}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# ------------------------------------------------------------------------------------------------------------- mixture


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 a.json 0.7 b.json", [(1.0, "a.json"), (0.7, "b.json")]),
        ("a.json", [(1.0, "a.json")]),
        ("a.json 2 b.json c.json", [(1.0, "a.json"), (2.0, "b.json"), (1.0, "c.json")]),
        ("  1e-1   dir/a.json.gz\n", [(0.1, "dir/a.json.gz")]),
        ("a.json:0.7", [(0.7, "a.json")]),
        ("a.json:0.7 2 b.json c.json:1e1", [(0.7, "a.json"), (2.0, "b.json"), (10.0, "c.json")]),
        ("./2 2 ./3", [(1.0, "2"), (2.0, "3")]),
        ("1 'my text.txt' 0.7 \"b c.json\":2.json", [(1.0, "my text.txt"), (0.7, "b c.json:2.json")]),
        ("'my text.txt:0.5'", [(0.5, "my text.txt")]),
        (
            ["a.txt", "b.json:0.5", "2 c.json d.json"],
            [(1.0, "a.txt"), (0.5, "b.json"), (2.0, "c.json"), (1.0, "d.json")],
        ),
    ],
)
def test_mixture(text: str | list[str], expected: list[tuple[float, str]]) -> None:
    assert parse_mixture(text) == [(weight, Path(path)) for weight, path in expected]


@pytest.mark.parametrize("name", ["My Drive/plan.json", "a:2", "1 a.json 0.7 b.json", "O'Brien.txt", "two  blanks"])
def test_a_value_that_is_a_file_is_that_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert parse_mixture(name) == [(1.0, Path(name))]
    assert parse_mixture([f"{name}:0.5", name]) == [(0.5, Path(name)), (1.0, Path(name))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "--data is empty"),
        ("a.json:0", "weight 0 must be positive"),
        ("1 a.json:2", "'a.json' has two weights, 1 and 2"),
        ("1 'a.json", "no closing quotation; quote names that hold blanks or quotes"),
        ("", "--data is empty"),
        ("1", "the last weight has no file behind it"),
        ("a.json 0.5", "the last weight has no file behind it"),
        ("1 2 a.json", "two weights in a row before '2'"),
        ("0 a.json", "weight 0 must be positive"),
        ("-1 a.json", "weight -1 must be positive"),
        ("nan a.json", "weight nan must be positive"),
        ("inf a.json", "weight inf must be positive"),
        (
            "My Drive/a.json",
            r"^--data 'My Drive/a.json': no such file; in a mixture, 'My' is none; quote names with bl",
        ),
        ("1 /x/My Drive/a.json:2", r"in a mixture, '/x/My' is none; quote names with blanks: '/x/My Drive/a.json:2'"),
    ],
)
def test_bad_mixtures_say_what_is_wrong(text: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_mixture(text)


def test_online_tasks_stand_in_mixtures_like_files() -> None:
    mixture = parse_mixture("1 online:plan_gen?simulations=50 a.json 0.7 online:count?scene=b.json&scene=c.json")
    assert mixture == [
        (1.0, OnlineTask("online:plan_gen?simulations=50", "plan_gen", simulations=50)),
        (1.0, Path("a.json")),
        (0.7, OnlineTask("online:count?scene=b.json&scene=c.json", "count", scenes=("b.json", "c.json"))),
    ]
    assert [(weight, task.task) for weight, task in online_tasks(mixture)] == [(1.0, "plan_gen"), (0.7, "count")]
    everything = parse_mixture("0.5 online:all")
    assert everything == [
        (0.5, OnlineTask(f"online:{task}", task)) for task in ("plan_gen", "act_recog", "count", "obj_move")
    ]
    assert [source for _, source in everything] == [
        task for _, source in everything for task in parse_online(source.name)
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("online:", "no online task ''; choose one of plan_gen, act_recog, count, obj_move, all"),
        ("online:counting", "no online task 'counting'"),
        ("online:count?simulations=9", "no option simulations=9; options of count: scene, dialect"),
        ("online:obj_move?x=1", "no option x=1; options of obj_move: none"),
        ("online:count?scene=", "no option scene="),
        ("online:plan_gen?simulations=0", "simulations=0: must be a whole number"),
        ("online:plan_gen?simulations=many", "simulations=many: must be a whole number"),
        ("online:plan_gen?simulations=1&simulations=2", "simulations is given 2 times"),
        ("online:act_recog?exclude=nowhere", "exclude=nowhere: none of eval/gen/plan_gen.json, eval/gen/plan_gen_un"),
        ("online:count?exclude=a", "no option exclude=a; options of count: scene, dialect"),
        ("online:plan_gen?search=luck", "search=luck: choose one of mcts, best-first"),
        ("online:all?scene=a.json", "options belong to one task"),
    ],
)
def test_bad_online_names_say_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--data {name}: {message}")):
        parse_mixture(f"0.5 {name}")


def test_plans_that_evaluation_sets_ask_about_are_held_out(tmp_path: Path) -> None:
    shot = "Q: How to rest? Given items include sofa.\nA: Sit on sofa."
    write_lines(
        tmp_path / "eval/gen/plan_gen.json",
        {"input": f"{shot}\nQ: How to read? Given items include book.\nA:", "ref": "Grab book."},
    )
    write_lines(
        tmp_path / "eval/gen/plan_gen_unseen.json",
        {"input": f"{shot}\nQ: How to play? Given items include ball.\nA:", "ref": "Grab ball."},
    )
    answers = {"answer": "rest", "answer_list": ["rest", "play"]}
    write_lines(
        tmp_path / "eval/qa/act_recog.json",
        {"input": "Given a task plan: Lie on bed.\nQuestion: what is it?\nAnswer:", **answers},
    )
    write_lines(
        tmp_path / "eval/qa/act_infer.json",
        {"input": "The light is on.\nQuestion: Given the above state, what is it?\nAnswer:", **answers},
    )
    out = held_out(str(tmp_path))
    free = TaskPlan("work", "How to work? Given items include desk.", "Walk to desk.", frozenset())
    assert free not in out
    for changes in (
        {"question": "How to read? Given items include book."},
        {"question": "How to rest? Given items include sofa."},  # an example in a prompt
        {"text": "Grab book."},
        {"text": "Lie on bed."},
        {"task": "play"},
        {"change": frozenset({"light || ON"})},
    ):
        assert replace(free, **changes) in out, changes
    assert replace(free, task="rest") not in out  # seen in training: only its plans are held out
    write_lines(tmp_path / "other/eval/qa/act_recog.json", {"input": "What?", **answers})
    with pytest.raises(InputError, match=r"act_recog\.json: .*cannot tell what this example is about: 'What"):
        held_out(str(tmp_path / "other"))


def test_mixture_carries_weights_and_places(tmp_path: Path) -> None:
    first, second = write_lines(tmp_path / "a.json", PLAN), write_lines(tmp_path / "b.json", PLAN, "", PLAN)
    examples = read_mixture([(1.0, first), (0.7, second)])
    assert [(e.weight, e.where) for e in examples] == [(1.0, f"{first}:1"), (0.7, f"{second}:1"), (0.7, f"{second}:3")]


def test_plain_text_is_all_to_be_learned(tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text("One.\nStill one.\n\n \nTwo.\n")
    where = tmp_path / "prose.txt"
    assert read_mixture([(0.5, tmp_path / "prose.txt")]) == [
        Document("One.\nStill one.", 0.5, f"{where}:1"),
        Document("Two.", 0.5, f"{where}:5"),
    ]


# ------------------------------------------------------------------------------------------------------------- readers


@pytest.mark.parametrize("name", ["plan.json", "plan.json.gz"])
def test_tasks_and_questions_are_read_gzipped_or_not(name: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / name, {**PLAN, "more": 1})
    assert read_task(path, 0.5) == [TaskExample(PLAN["input"], PLAN["ref"], 0.5, f"{path}:1")]
    path = write_lines(tmp_path / name, QUESTION)
    assert read_questions(path) == [Question("Where is the plate?", ("fridge", "table", "sofa"), 1, f"{path}:1")]


def test_line_separators_within_strings_are_not_ends_of_lines(tmp_path: Path) -> None:
    strange = {"input": "a\u2028b\u0085c\u000bd\u001c", "ref": "e\u2029f"}
    path = write_lines(tmp_path / "plan.json", strange, PLAN)
    assert [(e.input, e.ref) for e in read_task(path)] == [tuple(strange.values()), tuple(PLAN.values())]


def test_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes((json.dumps(PLAN) + "\r\n" + json.dumps(PLAN)).encode())
    assert [e.where for e in read_task(path)] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "a", "ref": ', r"plan\.json:2: not valid JSON"),
        ("{'input': 'a', 'ref': 'b'}", r"plan\.json:2: not valid JSON"),
        ("[1]", r"plan\.json:2: expected a JSON object, found list"),
        ('{"input": "a"}', r"plan\.json:2: the key 'ref' is missing"),
        ('{"ref": "a"}', r"plan\.json:2: the key 'input' is missing"),
        ('{"input": "a", "ref": 3}', r"plan\.json:2: the key 'ref' is int, not a string"),
        ('{"input": "a", "ref": null}', r"plan\.json:2: the key 'ref' is NoneType, not a string"),
    ],
)
def test_bad_task_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_task(write_lines(tmp_path / "plan.json", PLAN, line, PLAN))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "bed"}, r"qa\.json:2: the answer 'bed' is not in 'answer_list'"),
        ({"answer": None}, r"qa\.json:2: the key 'answer' is NoneType"),
        ({"answer_list": "table"}, r"qa\.json:2: 'answer_list' must be a list of at least two strings"),
        ({"answer_list": ["table"]}, r"qa\.json:2: 'answer_list' must be"),
        ({"answer_list": ["table", 1]}, r"qa\.json:2: 'answer_list' must be"),
    ],
)
def test_bad_questions_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_questions(write_lines(tmp_path / "qa.json", QUESTION, {**QUESTION, **changes}))


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
def test_empty_files_are_refused(text: str, tmp_path: Path) -> None:
    for name, read in (("a.json", read_task), ("a.json", read_questions), ("a.txt", read_documents)):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(InputError, match=rf"{name}: no (rows|documents); "):
            read(str(path) if read is read_documents else path)


@pytest.mark.parametrize("damage", ["not gzip", "cut", "flipped", "checksum"])
def test_damaged_gzip_is_named(damage: str, tmp_path: Path) -> None:
    records = [{**PLAN, "number": number} for number in np.random.default_rng(0).integers(0, 1 << 60, 200).tolist()]
    data = bytearray(write_lines(tmp_path / "plan.json.gz", *records).read_bytes())
    if damage == "not gzip":
        data = bytearray(json.dumps(PLAN).encode())
    elif damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "flipped":
        for place in range(len(data) // 2, len(data) // 2 + 40):
            data[place] ^= 0xFF
    else:
        data[-8] ^= 0xFF
    (tmp_path / "plan.json.gz").write_bytes(data)
    with pytest.raises(InputError, match=r"plan\.json\.gz: damaged gzip archive"):
        read_task(tmp_path / "plan.json.gz")


def test_missing_files_and_other_encodings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan\.json: no such file"):
        read_task(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes('{"input": "caf\u00e9", "ref": ""}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"plan\.json: not UTF-8 text \(byte 14\)"):
        read_task(tmp_path / "plan.json")


@pytest.mark.parametrize("end", ["", ".gz"])
def test_documents(end: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / f"a.json{end}", {"text": " one\n\ntwo"}, {"text": "  "}, {"text": "three"})
    assert read_documents(str(path)) == [" one\n\ntwo", "three"]
    path = write_lines(tmp_path / f"a.txt{end}", "", "one", "more", " \t", "", "two", "")
    assert read_documents(str(path)) == ["one\nmore", "two"]


def test_documents_without_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json:2: the key 'text' is missing"):
        read_documents(str(write_lines(tmp_path / "a.json", {"text": "one"}, PLAN)))


def test_help_topics_are_split_once_and_for_all() -> None:
    from pydoc_data.topics import topics

    fisher, held_out = read_documents("pydoc:fisher"), read_documents("pydoc:held-out")
    assert sorted(fisher + held_out) == sorted(text.strip() for text in topics.values())
    assert len(fisher) > 20
    assert len(held_out) > 20


def test_released_files_load(shared_data: Path) -> None:
    mixture = parse_mixture(
        f"1 {shared_data}/e2wm/train/train_plan_gen.json.gz 0.7 {shared_data}/e2wm/train/train_count.json.gz"
    )
    assert len(read_mixture(mixture)) == 1659 + 1000
    assert len(read_questions(shared_data / "e2wm/eval/qa/act_recog.json.gz")) == 549


# --------------------------------------------------------------------------------------------------------------- masks


def example(source: str, ref: str, weight: float = 1.0) -> TaskExample:
    return TaskExample(source, ref, weight, f"plan.json:{source[:1]}")


def official_labels(tokenizer: Any, source: str, ref: str, max_length: int) -> list[int]:
    """The official collate function: tokenize input + " " + ref + newline, hide as many tokens as the input has."""
    ids = tokenizer(f"{source} {ref}\n", add_special_tokens=False)["input_ids"][:max_length]
    hidden = len(tokenizer(source, add_special_tokens=False)["input_ids"])
    return [-100 if place < hidden else token for place, token in enumerate(ids)]


@pytest.mark.parametrize("max_length", [400, 24])
def test_targets_are_the_tokens_beyond_those_of_the_input(max_length: int, tiny_tokenizer: Any) -> None:
    pairs = [
        ("How to make tea?", "1. Walk to the kitchen 2. Wait"),
        ("Mary grabs the apple. Question: where is", "the apple? On the table"),
        ("ends with a space ", "answer"),
        ("ends with a line\n", "answer"),
        ("caf\u00e9 \U0001f600", "na\u00efve"),
        ("x", ""),
    ]
    rows, kept = task_rows(
        tiny_tokenizer, [example(*pair) for pair in pairs], max_length=max_length, skip_truncated=True
    )
    for row, index in zip(rows, kept, strict=True):
        labels = official_labels(tiny_tokenizer, *pairs[index], max_length)
        batch = collate([row], length=max_length, num_targets=max_length, batch_size=1)
        ours = np.full(max_length, -100)
        counted = batch.weights[0] > 0
        ours[batch.targets[0][counted]] = batch.ids[0][batch.targets[0][counted]]
        np.testing.assert_array_equal(ours[: len(labels)], labels)
        assert (ours[len(labels) :] == -100).all()
        assert row.ids.dtype == np.int32
    lost = [i for i, pair in enumerate(pairs) if set(official_labels(tiny_tokenizer, *pair, max_length)) == {-100}]
    assert sorted([*kept, *lost]) == list(range(len(pairs)))


def test_an_empty_input_hides_only_the_first_token(tiny_tokenizer: Any) -> None:
    """It has nothing before it from which to predict it."""
    (row,), _ = task_rows(tiny_tokenizer, [example("", "go")], max_length=99)
    assert row.first_target == 1
    assert row.num_targets == len(row.ids) - 1


def test_weights_of_tasks_reach_their_tokens(tiny_tokenizer: Any) -> None:
    rows, _ = task_rows(tiny_tokenizer, [example("a", "b", 0.7), example("c", "d e f", 2.0)], max_length=99)
    weights = collate(rows, length=16, num_targets=16, batch_size=3).weights
    for row, values, weight in zip(rows, weights, (0.7, 2.0), strict=False):
        assert values.tolist() == [np.float32(weight)] * row.num_targets + [0.0] * (16 - row.num_targets)
    assert not weights[2].any()


def test_special_tokens_only_where_asked_for(tiny_tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    plain, special = (encode(tokenizer, ["tea"], special_tokens=flag)[0] for flag in (False, True))
    assert special == [0, *plain]
    for flag in (False, True):
        (row,), _ = task_rows(tokenizer, [example("tea", "now")], max_length=99, special_tokens=flag)
        assert row.first_target == len(plain) + flag
        (row,), (size,) = document_rows(tokenizer, ["tea now"], max_length=99, special_tokens=flag)
        first = 0 if flag else len(tokenizer.decode(plain[:1]))
        assert size == len("tea now") - first


def closing_tokenizer() -> Any:
    """It writes <s> in front of every text and </s> behind it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    begin, end = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    return tokenizer


def test_of_a_tokenizer_that_closes_texts_every_answer_token_is_learned() -> None:
    """The </s> behind the lone input is none of the input's."""
    tokenizer = closing_tokenizer()
    examples = [example("ab", "cd"), Completion("ab", " cd\n", 1.0, "b"), Document("cd", 1.0, "c"), example("", "c")]
    rows, _ = task_rows(tokenizer, examples, max_length=99, special_tokens=True)
    learned = [tokenizer.convert_ids_to_tokens(row.ids[row.targets]) for row in rows]
    assert learned == [["\u0120", "c", "d", "\u010a", "</s>"]] * 2 + [
        ["c", "d", "</s>"],
        ["\u0120", "c", "\u010a", "</s>"],
    ]
    assert encode_prompts(tokenizer, ["ab", ""], special_tokens=True) == [rows[0].ids[:3].tolist(), [rows[0].ids[0]]]
    asked = pack(tokenizer, Question("ab", ("cd", "e"), 0, "a"), special_tokens=True)
    assert [tokenizer.decode([asked.ids[place]]) for place in asked.targets] == [
        " ",
        "c",
        "d",
        "</s>",
        " ",
        "e",
        "</s>",
    ]


def test_what_a_special_token_of_the_text_itself_ends_is_a_prompt() -> None:
    tokenizer = byte_tokenizer()
    (row,), _ = task_rows(tokenizer, [Completion("a</s>", "b", 1.0, "a")], max_length=99)
    assert tokenizer.decode(row.ids[row.targets]) == "b</s>"


@pytest.mark.parametrize("append_eos", [None, True, False])
def test_texts_and_completions_end_unless_told_otherwise(append_eos: bool | None) -> None:
    tokenizer = byte_tokenizer()
    examples = [
        example("a", "b"),
        Completion("a", "b", 1.0, "b"),
        Document("ab", 1.0, "c"),
        Document("c</s>", 1.0, "d"),
    ]
    rows, _ = task_rows(tokenizer, examples, max_length=99, append_eos=append_eos)
    texts = [tokenizer.decode(row.ids) for row in rows]
    end = "" if append_eos is False else "</s>"
    assert texts == ["a b\n" + "</s>" * (append_eos is True), "ab" + end, "ab" + end, "c</s>"]
    assert [tokenizer.decode(row.ids[row.targets]) for row in rows][1:3] == ["b" + end, "b" + end]


def test_a_tokenizer_without_an_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    (row,), _ = task_rows(tokenizer, [Document("ab", 1.0, "c")], max_length=99)
    assert tokenizer.decode(row.ids) == "ab"
    with pytest.raises(InputError, match="the model's tokenizer has no end-of-text token; pass --append-eos no"):
        task_rows(tokenizer, [Document("ab", 1.0, "c")], max_length=99, append_eos=True)


def test_what_a_limit_cuts_is_counted(tiny_tokenizer: Any) -> None:
    (row, short), _ = task_rows(tiny_tokenizer, [example("a", "b" * 20), example("a", "b")], max_length=5)
    assert row.cut == len(encode(tiny_tokenizer, ["a " + "b" * 20 + "\n"], special_tokens=False)[0]) - 5 > 0
    assert short.cut == 0
    ((document,), _) = document_rows(tiny_tokenizer, ["b" * 20], max_length=5, special_tokens=False)
    assert document.cut == len(encode(tiny_tokenizer, ["b" * 20], special_tokens=False)[0]) - 5


def test_rows_without_answer_are_an_error_or_skipped(tiny_tokenizer: Any) -> None:
    examples = [example("a", "b"), example("Mary walks to the kitchen and to the table", "b"), example("c", "d")]
    length = len(encode(tiny_tokenizer, [examples[1].input], special_tokens=False)[0])
    with pytest.raises(
        InputError,
        match=rf"plan\.json:M: --max-length {length} leaves no answer token \(1 of 3 rows, inputs up to {length} "
        r"tokens\); raise --max-length or pass --skip-truncated",
    ):
        task_rows(tiny_tokenizer, examples, max_length=length)
    rows, kept = task_rows(tiny_tokenizer, examples, max_length=length, skip_truncated=True)
    assert kept == [0, 2]
    assert len(rows) == 2
    rows, kept = task_rows(tiny_tokenizer, examples, max_length=length + 1)
    assert [row.num_targets for row in rows][1] == 1
    with pytest.raises(InputError, match=r"--max-length 1 leaves no answer token .*; raise --max-length$"):
        task_rows(tiny_tokenizer, examples, max_length=1, skip_truncated=True)


def test_rows_with_nothing_to_learn_are_not_blamed_on_the_limit(tiny_tokenizer: Any) -> None:
    examples = [Completion("a b", "c", 1.0, "f:1"), Completion("a b", "", 1.0, "f:2")]
    rows, kept = task_rows(tiny_tokenizer, examples, max_length=9, append_eos=False, skip_truncated=True)
    assert (len(rows), kept) == (1, [0])
    with pytest.raises(InputError, match=r"^f:2: nothing to learn, .*\(1 of 2 rows, .*; give answers, or pass --s"):
        task_rows(tiny_tokenizer, examples, max_length=9, append_eos=False)
    with pytest.raises(InputError, match=r"^f:2: nothing to learn, .*; give answers$"):
        task_rows(tiny_tokenizer, examples[1:], max_length=9, append_eos=False, skip_truncated=True)


@pytest.mark.parametrize("max_length", [400, 7, 2])
def test_document_sizes_are_bytes_of_predicted_tokens(max_length: int, tiny_tokenizer: Any) -> None:
    documents = ["Mary walks to the kitchen.", "caf\u00e9, na\u00efve, ok", "x", "", "one two\n\n  three"]
    rows, sizes = document_rows(tiny_tokenizer, documents, max_length=max_length, special_tokens=False)
    assert len(rows) == len(sizes) == 3
    for row, size in zip(rows, sizes, strict=True):
        assert row.first_target == 1
        assert len(row.ids) <= max_length
        assert size == len(tiny_tokenizer.decode(row.ids[1:]).encode())
