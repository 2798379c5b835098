"""bAbI: the reader against hand-written stories and against a second reader of the real archive, scores by hand."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2wm_jax import cli
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.benchmarks import babi
from e2wm_jax.evaluate.benchmarks.babi import BabiOptions, evaluate, normalized, prompt, worked
from e2wm_jax.evaluate.benchmarks.babi_stories import StoryQuestion, draw_shots, parse, parse_tasks, read_tasks
from e2wm_jax.evaluate.model import Evaluated, load_evaluated
from e2wm_jax.evaluate.texts import continuations

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRAIN = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel got the apple.
5 Where is John? \thallway\t2
1 Sandra moved to the office.
2 Where is Sandra? \toffice\t1
1 Mary got the apple there.
2 Mary got the milk.
3 What is Mary carrying? \tapple,milk\t1 2
"""
TEST = """1 Mary grabs the apple.
2 Where is the apple? \tkitchen\t1
3 Mary walks to the kitchen.
4 Where is Mary? \tkitchen\t3
1 John walks to the table.
2 Where is John?|Table.|1
"""


def write_task(folder: Path, task: int = 1, *, train: str = TRAIN, test: str = TEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"qa{task}_made-up_train.txt").write_text(train)
    (folder / f"qa{task}_made-up_test.txt").write_text(test)
    return folder


def tar_of(folder: Path, path: Path, prefix: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, prefix + file.name)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_llama) -> Evaluated:
    return load_evaluated(str(tiny_llama))


# -------------------------------------------------------------------------------------------------------------- reading


def test_stories_by_hand():
    passages = ("Mary moved to the bathroom.", "John went to the hallway.")
    assert parse(TRAIN, "f") == [
        StoryQuestion(passages, "Where is Mary?", "bathroom", (0,), 0, "f:3"),
        StoryQuestion((*passages, "Daniel got the apple."), "Where is John?", "hallway", (1,), 0, "f:5"),
        StoryQuestion(("Sandra moved to the office.",), "Where is Sandra?", "office", (0,), 1, "f:7"),
        StoryQuestion(
            ("Mary got the apple there.", "Mary got the milk."),
            "What is Mary carrying?",
            "apple,milk",
            (0, 1),
            2,
            "f:10",
        ),
    ]
    # Task 1 of some copies has | where the others have tabs.
    assert parse(TEST, "f")[2] == StoryQuestion(
        ("John walks to the table.",), "Where is John?", "Table.", (0,), 1, "f:6"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Mary moved.\n", r"f:1: 'Mary moved\.': expected '1 ' and a text"),
        ("1 Mary moved.\n3 John moved.\n", "f:2: .*expected '2 '"),
        ("1 Mary moved.\n2 Where?\tbathroom\n", "f:2: a question needs a tab, its answer"),
        ("1 Mary moved.\n2 Where?\t\t1\n", "f:2: a question needs"),
        ("1 Mary moved.\n2 Where?\tbathroom\t7\n", "f:2: .*statements of its story"),
        ("1 A.\n2 B?\tc\t1\n1 D.\n2 E.\n3 F?\tg\t2 x\n4 H?\ti\t3\n", "f:6: .*statements"),  # a question is no statement
        ("1 Mary moved.\n", "f: no questions"),
    ],
)
def test_malformed_stories_are_refused_with_their_line(text, message):
    with pytest.raises(InputError, match=message):
        parse(text, "f")


def test_folder_and_archive_hold_the_same(tmp_path):
    folder = write_task(tmp_path / "en", 1)
    write_task(folder, 15, train=TRAIN * 2)
    found = read_tasks(folder, (1, 15))
    packed = read_tasks(tar_of(folder, tmp_path / "a.tar.gz", "../../tmp/"), (1, 15))  # such names are only read

    def contents(data: Any) -> Any:
        return {task: [[q._replace(where="") for q in split] for split in both] for task, both in data.items()}

    assert contents(found) == contents(packed)
    assert len(found[15].train) == 8
    assert packed[1].test[0].where.endswith("a.tar.gz(../../tmp/qa1_made-up_test.txt):2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "en"]


def test_of_several_copies_the_original_english_is_read(tmp_path):
    write_task(tmp_path / "all/en")
    write_task(tmp_path / "all/en-10k", test=TRAIN)
    assert len(read_tasks(tmp_path / "all", (1,))[1].test) == 3
    (tmp_path / "all/en").rename(tmp_path / "all/hn")
    with pytest.raises(InputError, match=r"qa1_\*_train.txt is several \(.*give the folder of one"):
        read_tasks(tmp_path / "all", (1,))


def test_bad_sources_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read_tasks(tmp_path / "nowhere", (1,))
    with pytest.raises(InputError, match=r"qa2_\*_train.txt is not there"):
        read_tasks(write_task(tmp_path / "en"), (1, 2))
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="not a readable tar archive"):
        read_tasks(tmp_path / "x.tar.gz", (1,))
    whole = tar_of(tmp_path / "en", tmp_path / "en.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable tar archive"):
        read_tasks(tmp_path / "cut.tar.gz", (1,))
    with tarfile.open(tmp_path / "latin.tar", "w") as archive:
        for split in ("train", "test"):
            content = "1 Café.\n".encode("latin-1")
            member = tarfile.TarInfo(f"qa1_x_{split}.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(InputError, match="not UTF-8"):
        read_tasks(tmp_path / "latin.tar", (1,))


def test_an_archive_s_links_are_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text(TEST)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for split in ("train", "test"):
            member = tarfile.TarInfo(f"qa1_x_{split}.txt")
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
            archive.addfile(member)
    with pytest.raises(InputError, match="is not there"):
        read_tasks(tmp_path / "a.tar", (1,))


def test_the_real_archive_against_a_second_reader(shared_data):
    path = shared_data / "babi/en.tar.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    data = read_tasks(path, range(1, 21))
    facts = 0
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            task, split = re.search(r"qa(\d+)_.*_(train|test)", member.name).groups()
            lines = archive.extractfile(member).read().decode().replace("|", "\t").splitlines()
            questions = getattr(data[int(task)], split)
            assert len(questions) == 1000 == sum("?" in line for line in lines)
            asked, story, start = iter(questions), -1, 0
            for i, line in enumerate(lines):
                if line.startswith("1 "):
                    story, start = story + 1, i
                if "\t" not in line:
                    continue
                question = next(asked)
                body, answer, supports = line.partition(" ")[2].split("\t")
                before = lines[start:i]
                assert list(question.passage) == [one.partition(" ")[2] for one in before if "\t" not in one]
                assert (question.question, question.answer) == (body.strip(), answer)
                assert question.story == story
                given = [lines[start + int(number) - 1].partition(" ")[2] for number in supports.split()]
                assert [question.passage[fact] for fact in question.supports] == given
                facts += len(given)
            assert next(asked, None) is None
    assert facts > 60_000  # 1 to 3 for most of 40,000 questions
    paths = {q.answer for q in data[19].test}
    assert " ".join(sorted(paths)) == "e,e e,n e,s n,e n,n n,w s,e s,s s,w w,n w,s w,w"
    assert data[8].test[-1].answer == "milk"


@pytest.mark.parametrize(
    ("text", "numbers"), [("1-20", tuple(range(1, 21))), ("3", (3,)), ("5-7, 1,6", (1, 5, 6, 7)), ("20,19", (19, 20))]
)
def test_task_numbers(text, numbers):
    assert parse_tasks(text) == numbers


@pytest.mark.parametrize("text", ["", "0", "21", "3-2", "1-", "one", "1,,2", "-3"])
def test_impossible_task_numbers_are_refused(text):
    with pytest.raises(InputError, match=r"--tasks .* is no task or range in 1-20"):
        parse_tasks(text)


# -------------------------------------------------------------------------------------------------------------- prompts


def test_the_prompt_is_the_documented_one():
    first, *_ = parse(TRAIN, "f")
    last = StoryQuestion(("Daniel travelled to the office.",), "Where is Daniel?", "office", (0,), 0, "f:1")
    block = re.search(r"With one example:\n\n(.*?)\n\nThe examples", babi.__doc__, re.DOTALL)[1]
    documented = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    assert worked(first) + prompt(last) == documented


def test_shots_are_of_different_stories_and_fixed_by_the_seed():
    train = parse(TRAIN * 5, "f")  # 15 stories
    drawn = draw_shots(train, 6, seed=1, task=4)
    assert len({shot.story for shot in drawn}) == 6
    assert drawn == draw_shots(train, 6, seed=1, task=4)
    assert drawn != draw_shots(train, 6, seed=2, task=4)
    assert drawn != draw_shots(train, 6, seed=1, task=5)
    assert draw_shots(train, 0, seed=1, task=4) == []
    # Every question of a story can be the one that is shown.
    shown = {shot.where for seed in range(60) for shot in draw_shots(train[:4], 3, seed=seed, task=1)}
    assert shown == {"f:3", "f:5", "f:7", "f:10"}
    with pytest.raises(InputError, match=r"--shots 4: the train split of task 1 has 3 stories"):
        draw_shots(train[:4], 4, seed=0, task=1)


@pytest.mark.parametrize(
    ("ours", "theirs", "equal"),
    [
        (" Kitchen.", "kitchen", True),
        ("kitchen .", "kitchen", True),
        ("the kitchen", "kitchen", False),
        ("apple, milk", "apple,milk", False),
        ("milk,apple", "apple,milk", False),
        ("", "no", False),
    ],
)
def test_what_exact_match_ignores(ours, theirs, equal):
    assert (normalized(ours) == normalized(theirs)) is equal


# --------------------------------------------------------------------------------------------------------------- scores


def greedy_line(model: Any, tokenizer: Any, text: str, limit: int) -> str:
    """What PyTorch writes behind a prompt up to the end of the line, a whole pass per token."""
    torch = pytest.importorskip("torch")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new: list[int] = []
    with torch.no_grad():
        while len(new) < limit and (not new or new[-1] != tokenizer.eos_token_id):
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return tokenizer.decode(new, skip_special_tokens=True).split("\n")[0]


def test_predictions_equal_pytorch_and_scores_are_theirs(tiny, tiny_llama, torch_oracle, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = write_task(tmp_path / "en", 1)
    write_task(folder, 8, test=TRAIN, train=TEST)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch_oracle.float32).eval()
    data = read_tasks(folder, (1, 8))
    expected = {}
    for task, (train, test) in data.items():
        head = "".join(worked(shot) for shot in draw_shots(train, 1, seed=3, task=task))
        expected[task] = [greedy_line(model, tiny.tokenizer, head + prompt(one), 6).strip() for one in test]
    # The gold answers of some questions become what the model says, so that there is something right.
    said = expected[1][1].replace("\t", " ")
    text = TEST.replace("kitchen\t3", f"{said.upper()}.\t3")
    if not said or "|" in said:
        pytest.fail(f"the tiny model says {said!r}; take another seed")
    write_task(folder, 1, test=text)
    out = tmp_path / "predictions.jsonl"
    result = evaluate(tiny, folder, (1, 8), BabiOptions(shots=1, seed=3, max_new_tokens=6), predictions=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(3 + 4))
    assert [row["task"] for row in rows] == [1] * 3 + [8] * 4
    assert [row["prediction"] for row in rows] == expected[1] + expected[8]
    assert [row["correct"] for row in rows[:3]] == [False, True, False]
    right = [row["answer"].lower().rstrip(".") == row["prediction"].lower().rstrip(".") for row in rows]
    assert [row["correct"] for row in rows] == right
    assert result["accuracy"] == {"1": sum(right[:3]) / 3, "8": sum(right[3:]) / 4}
    assert result["mean"] == pytest.approx((sum(right[:3]) / 3 + sum(right[3:]) / 4) / 2)
    assert result["n"] == {"1": 3, "8": 4}
    assert result["majority"] == {"1": 1 / 3, "8": 1 / 4}
    assert result["shots"] == 1
    assert result["shortened"] == {}
    for key, value in {**result["accuracy"], "mean": result["mean"]}.items():
        low, high = result["intervals"][key]
        assert low <= value <= high


def test_intervals_resample_stories_not_questions():
    """Ten stories of two questions, of which one half is right whole: the mean of ten coins."""
    asked = [
        babi._Asked(i, 1, StoryQuestion((), "q", "yes" if i < 12 else "no", (), i // 2, "f"), "", [], 0, False)
        for i in range(20)
    ]
    records = [{"correct": one.question.story % 2 == 0} for one in asked]
    found = babi._scores(asked, records, BabiOptions(shots=0))
    assert found["accuracy"] == {"1": 0.5}
    assert found["majority"] == {"1": 0.6}
    # Binomial(10, 1/2) / 10 lies within 0.2 and 0.8 with probability 0.979, within 0.3 and 0.7 with 0.891.
    np.testing.assert_allclose(found["intervals"]["1"], [0.2, 0.8], atol=1e-9)
    assert found["intervals"]["mean"] == found["intervals"]["1"]


def test_one_story_has_no_interval(capsys):
    """Nor has the mean then: resampled, the story would always come out the same."""
    asked = [
        babi._Asked(i, task, StoryQuestion((), "q", "yes", (), story, "f"), "", [], 0, False)
        for i, (task, story) in enumerate([(1, 0), (2, 0), (2, 1)])
    ]
    found = babi._scores(asked, [{"correct": True}, {"correct": True}, {"correct": False}], BabiOptions(shots=0))
    assert found["mean"] == 0.75
    assert list(found["intervals"]) == ["2"]
    babi.show(found)
    assert "0.750" in capsys.readouterr().out


def test_prompts_that_do_not_fit_lose_their_first_examples(save_llama, tmp_path, capsys):
    save_llama(tmp_path / "short", max_position_embeddings=192)
    model = load_evaluated(str(tmp_path / "short"))
    long = "".join(f"{n} Mary grabs the apple and puts the apple on the table.\n" for n in range(1, 8))
    test = f"{TEST}{long}8 Where is the apple?\ttable\t1\n"
    folder = write_task(tmp_path / "en", test=test)
    options = BabiOptions(shots=3, max_new_tokens=4)
    result = evaluate(model, folder, (1,), options)

    def tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    train, questions = read_tasks(folder, (1,))[1]
    shots = [worked(shot) for shot in draw_shots(train, 3, seed=0, task=1)]
    expected = []
    for question in questions:
        fits = [n for n in range(4) if tokens("".join(shots[3 - n :]) + prompt(question)) <= 192 - 4]
        expected.append(max(fits))
    asked = babi.ask(model, read_tasks(folder, (1,)), options)
    assert [one.shots for one in asked] == expected
    assert [one.prompt for one in asked] == [
        "".join(shots[3 - n :]) + prompt(question) for n, question in zip(expected, questions, strict=True)
    ]
    assert min(expected) < 3
    assert result["shortened"] == {"1": sum(n < 3 for n in expected)}
    assert "fewer than 3 examples" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"en/qa1_made-up_test\.txt:\d+: \d+ tokens without any example.*room for 16"):
        evaluate(model, folder, (1,), BabiOptions(max_new_tokens=176))


def test_command_writes_a_table_and_json_and_resumes(tiny_llama, tmp_path, capsys, monkeypatch):
    folder = tar_of(write_task(tmp_path / "en"), tmp_path / "en.tar.gz")
    out = tmp_path / "p.jsonl"
    words = ["eval", "babi", "--model", str(tiny_llama), "--data", str(folder), "--tasks", "1", "--shots", "1"]
    words += ["--predictions", str(out), "--batch-size", "2", "--max-new-tokens", "4"]
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["accuracy"].keys() == {"1"}
    whole = out.read_bytes()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to be computed")

    with monkeypatch.context() as patch:
        patch.setattr(continuations, "generate", refuse)
        assert cli.main([*words, "--resume"]) == 0
        shown = capsys.readouterr().out
    assert "single supporting fact" in shown
    assert re.search(r"mean +. +. +\d\.\d{3}", shown)
    assert out.read_bytes() == whole
    assert cli.main([*words, "--resume", "--seed", "1"]) == 2
    assert "predictions of something else" in capsys.readouterr().err
    assert cli.main([*words, "--samples", "0"]) == 2
    assert "--samples 0: must be at least 1" in capsys.readouterr().err
