"""lm-evaluation-harness: its requests against plain PyTorch, one sequence at a time, and tasks of one's own.

The harness itself is no part of the extra `test` (half a gigabyte); with it installed, the last tests run as well.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import byte_tokenizer, ids_of

from e2wm_jax import cli
from e2wm_jax.data.chat import chat_prompt
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.benchmarks import harness
from e2wm_jax.evaluate.benchmarks.harness import HarnessSettings, harness_model, scores
from e2wm_jax.evaluate.benchmarks.harness_requests import (
    Answering,
    generate_until,
    loglikelihoods,
    rolling,
    token_loglikelihoods,
    windows,
)
from e2wm_jax.evaluate.model import Evaluated, load_evaluated

pytestmark = pytest.mark.usefixtures("quick_compilation")

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'e2wm_jax[harness]'"
)

# Continuations that share a context, of one and of many tokens, with spaces on either side, without context, and twice
# the same.
PAIRS = [
    ("Mary walks to the", " kitchen"),
    ("Mary walks to the", " kitchen table."),
    ("Mary walks to the ", "bedroom"),
    ("Mary walks to the", " kitchen"),
    ("", "The quick brown fox"),
    ("", "Question: How many"),
    ("x", "y"),
    ("How to make coffee? 1. Walk to the coffee machine 2.", " Switch on the coffee machine 3. Wait"),
    ("Mary walks to the", " bed"),
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT_QUESTION = "<|im_start|>user\nWhere is Mary?<|im_end|>\n<|im_start|>assistant\n"
LONG = "The quick brown fox jumps over 13 lazy dogs. " * 9
TEXTS = ["Mary grabs the apple and puts the apple on the table.", "x", "", LONG]


@pytest.fixture(scope="module")
def tiny(tiny_llama) -> Evaluated:
    return load_evaluated(str(tiny_llama))


@pytest.fixture(scope="module")
def tiny_torch(tiny_llama, torch_oracle) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch_oracle.float32).eval()


def torch_score(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Sum of log p of the continuation, and whether each of its tokens is the likeliest."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation[:-1]])).logits[0, len(context) - 1 :].double()
    own = torch.tensor(continuation)
    chosen = torch.log_softmax(logits, -1)[torch.arange(len(own)), own]
    return float(chosen.sum()), bool((logits.argmax(-1) == own).all())


def torch_pair(model: Any, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    if not context:
        return torch_score(model, [tokenizer.bos_token_id], ids_of(tokenizer, continuation))
    before = ids_of(tokenizer, context.rstrip(" "))
    return torch_score(model, before, ids_of(tokenizer, context + continuation)[len(before) :])


def greedy(model: Any, ids: list[int], limit: int) -> list[int]:
    torch = pytest.importorskip("torch")
    new: list[int] = []
    with torch.no_grad():
        while len(new) < limit and (not new or new[-1] != 1):
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


# ------------------------------------------------------------------------------------------------------------- requests


def test_loglikelihoods_equal_pytorch(tiny, tiny_torch):
    expected = [torch_pair(tiny_torch, tiny.tokenizer, *pair) for pair in PAIRS]
    found = loglikelihoods(tiny, PAIRS, Answering(batch_size=3))
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], rtol=1e-5, atol=1e-5)
    assert [best for _, best in found] == [best for _, best in expected]


def test_greedy_is_what_pytorch_would_write(tiny, tiny_torch):
    context = ids_of(tiny.tokenizer, "Where is Mary?")
    written = greedy(tiny_torch, context, 3)
    others = [[*written[:2], written[2] ^ 1], [written[0] ^ 1, *written[1:]], written[:1], [*written, 7]]
    pairs = [(context, own) for own in (written, *others)]
    found = token_loglikelihoods(tiny, pairs, Answering(), name="tokens")
    expected = [torch_score(tiny_torch, *pair) for pair in pairs]
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], rtol=1e-5)
    assert [best for _, best in found] == [True, False, False, True, expected[-1][1]]


def test_long_contexts_lose_their_beginning(tiny, tiny_torch):
    context, continuation = "Mary walks to the kitchen. " * 12, " Mary grabs the apple"
    before = ids_of(tiny.tokenizer, context.rstrip())
    own = ids_of(tiny.tokenizer, context.rstrip() + " " + continuation)[len(before) :]
    assert len(before) > 40
    (found,) = loglikelihoods(tiny, [(context, continuation)], Answering(max_length=40))
    expected = torch_score(tiny_torch, before[-(41 - len(own)) :], own)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    with pytest.raises(InputError, match=r"continuation of \d+ tokens; the model reads 3 at most"):
        loglikelihoods(tiny, [(context, continuation)], Answering(max_length=3))
    with pytest.raises(InputError, match="continuation '' of 'x' has no tokens"):
        loglikelihoods(tiny, [("x", "")])


@pytest.mark.parametrize("kind", ["llama", "gpt_neo"])
def test_the_whole_of_the_positions_is_used(kind, save_llama, tiny_tokenizer, torch_oracle, tmp_path):
    """A full window and the token behind it: a table of learned positions has no row for the last one."""
    from helpers import random_torch_model

    if kind == "llama":
        model = save_llama(tmp_path, max_position_embeddings=32)
    else:
        model = random_torch_model(
            "gpt_neo",
            vocab_size=320,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            max_position_embeddings=32,
            window_size=8,
            attention_types=[[["global", "local"], 1]],
            bos_token_id=0,
            eos_token_id=1,
        )
        model.save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
    evaluated = load_evaluated(str(tmp_path))
    ids = ids_of(tiny_tokenizer, LONG)
    assert len(ids) > 64
    expected = 0.0
    for start in range(0, len(ids), 32):  # as the documentation of the harness draws it
        own = ids[start : start + 32]
        read = [0, *ids][max(0, start + len(own) - 32) : start + 1]
        expected += torch_score(model, read, own)[0]
    (found,) = rolling(evaluated, [LONG])
    assert found == pytest.approx(expected, rel=1e-5)


def test_windows_of_the_harness_documentation():
    assert windows(-1, list(range(10)), 4) == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert windows(-1, [], 4) == []
    assert windows(-1, [7], 4) == [([-1], [7])]


def test_rolling_equals_pytorch(tiny, tiny_torch):
    expected = [torch_score(tiny_torch, [0], ids_of(tiny.tokenizer, text))[0] if text else 0.0 for text in TEXTS]
    np.testing.assert_allclose(rolling(tiny, TEXTS), expected, rtol=1e-5)


def test_special_tokens_stand_before_every_text(tiny, tiny_torch):
    """With a tokenizer that begins texts with <|begin|>, but not those that begin so themselves."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(tiny.tokenizer.backend_tokenizer.to_str())
    inner.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|end|>")
    begins = tiny._replace(tokenizer=tokenizer)
    before = ids_of(tokenizer, "Mary walks to the")
    own = ids_of(tokenizer, "Mary walks to the kitchen")[len(before) :]
    expected = torch_score(tiny_torch, [0, *before], own)[0]
    pairs = [("Mary walks to the", " kitchen"), ("<|begin|>Mary walks to the", " kitchen")]
    for value, _ in loglikelihoods(begins, pairs):
        assert value == pytest.approx(expected, rel=1e-5)
    ((plain, _),) = loglikelihoods(begins, pairs[:1], Answering(special_tokens=False))
    assert plain == pytest.approx(torch_score(tiny_torch, before, own)[0], rel=1e-5)
    assert abs(plain - expected) > 1e-3


def test_generation_stops_where_pytorch_s_text_is_cut(tiny, tiny_torch):
    contexts = ["Where is Mary?", "How many apples are there? Answer:", "x"]
    texts = [
        tiny.tokenizer.decode(greedy(tiny_torch, ids_of(tiny.tokenizer, text), 12), skip_special_tokens=True)
        for text in contexts
    ]
    stop, other = texts[0][3], texts[0][4:6]  # within the text, one of them of two characters
    requests = [
        (contexts[0], {"until": [stop], "max_gen_toks": 12}),
        (contexts[0], {"until": ["\0", other], "max_new_tokens": 12, "do_sample": False, "temperature": 0.0}),
        (contexts[1], {"until": stop, "max_gen_toks": 12}),
        (contexts[2], {"max_gen_toks": 12}),
    ]
    found = generate_until(tiny, requests, Answering(batch_size=2))
    assert found == [
        texts[0].split(stop)[0],
        texts[0].split(other)[0],
        texts[1].split(stop)[0],
        texts[2],
    ]
    assert found[0] != texts[0]
    # A prompt that is too long loses its beginning.
    long = "Mary walks to the kitchen. " * 12
    last = ids_of(tiny.tokenizer, long)[-20:]
    (short,) = generate_until(tiny, [(long, {"max_gen_toks": 4})], Answering(max_length=24))
    assert short == tiny.tokenizer.decode(greedy(tiny_torch, last, 4), skip_special_tokens=True)


def test_generation_options_that_are_not_known_are_refused(tiny):
    with pytest.raises(InputError, match="generation option 'penalty_alpha' of a task"):
        generate_until(tiny, [("x", {"penalty_alpha": 1})])
    with pytest.raises(InputError, match="8 new tokens leave no room for a prompt in 8"):
        generate_until(tiny, [("x", {"max_gen_toks": 8})], Answering(max_length=8))


def test_sampled_generation_is_the_seed_s(tiny):
    requests = [("Where is Mary?", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12})]
    found = [generate_until(tiny, requests, Answering(seed=seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


# -------------------------------------------------------------------------------------------------------------- command


def test_scores_of_the_harness_results_by_hand():
    found = {
        "results": {
            "t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 0.25, "em_stderr,strict": 0.1},
            "g": {"alias": "g", "acc,none": 0.5},
        },
        "groups": {"g": {"alias": "g", "acc,none": 0.5}},
        "n-samples": {"t": {"original": 9, "effective": 4}},
        "n-shot": {"t": 2, "g": 0},
        "versions": {"t": 1.0},
    }
    assert scores(found) == {
        "tasks": {"t": {"acc": 0.5, "em,strict": 0.25, "em_stderr,strict": 0.1}},
        "groups": {"g": {"acc": 0.5}},
        "n": {"t": 4},
        "shots": {"t": 2},
        "versions": {"t": 1.0},
    }


def test_without_the_harness_the_extra_is_named(tiny_llama, monkeypatch):
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(harness.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"not usable here.*pip install 'e2wm_jax\[harness\]'"):
        harness.run(HarnessSettings(str(tiny_llama), ("hellaswag",)))


QUESTIONS = [
    {"question": "Where is Mary?", "choices": ["kitchen", "kitchen table", "bed"], "gold": 0},
    {"question": "How many apples are there?", "choices": ["1", "13", "27"], "gold": 2},
    {"question": "What is this activity?", "choices": ["go to sleep", "make coffee", "lie"], "gold": 1},
    {"question": "Where is the plate?", "choices": ["fridge", "table", "on the table"], "gold": 1},
]
COMMON = """dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{question}}}}"
metadata:
  version: 1.0
"""
TASK_FILES = {
    "choices": """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list:
  - metric: acc
""",
    "words": """output_type: generate_until
doc_to_target: "{{choices[gold]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
""",
    "text": """output_type: loglikelihood_rolling
doc_to_target: "{{question}}"
metric_list:
  - metric: word_perplexity
""",
}


@pytest.fixture
def own_tasks(tmp_path, monkeypatch) -> Path:
    """A folder with three tasks, whose questions are in a local file."""
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in TASK_FILES.items():
        (folder / f"{name}.yaml").write_text(f"task: own_{name}\n{COMMON.format(data=data)}{text}")
    return folder


@needs_harness
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the harness and the libraries that it brings
def test_tasks_of_one_s_own_through_the_harness(tiny_llama, tiny, tiny_torch, own_tasks, tmp_path, capsys):
    words = ["eval", "harness", "--model", str(tiny_llama), "--tasks", "own_choices,own_words", "own_text"]
    words += ["--include-path", str(own_tasks), "--out", str(tmp_path / "all.json")]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    right = 0
    for question in QUESTIONS:
        values = [torch_pair(tiny_torch, tiny.tokenizer, question["question"], f" {c}")[0] for c in question["choices"]]
        right += int(np.argmax(values)) == question["gold"]
    assert found["tasks"]["own_choices"]["acc"] == right / 4
    assert found["n"] == {"own_choices": 4, "own_words": 4, "own_text": 4}
    nll = sum(torch_score(tiny_torch, [0], ids_of(tiny.tokenizer, q["question"]))[0] for q in QUESTIONS)
    number = sum(len(q["question"].split()) for q in QUESTIONS)
    assert found["tasks"]["own_text"]["word_perplexity"] == pytest.approx(np.exp(-nll / number), rel=1e-4)
    everything = json.loads((tmp_path / "all.json").read_text())
    for sample in everything["samples"]["own_words"]:
        ids = ids_of(tiny.tokenizer, QUESTIONS[sample["doc_id"]]["question"])
        text = tiny.tokenizer.decode(greedy(tiny_torch, ids, 4), skip_special_tokens=True)
        assert sample["resps"] == [[text.split("\n")[0]]]
    assert cli.main([*words, "--limit", "2"]) == 0
    assert "word_perplexity" in capsys.readouterr().out
    assert cli.main([*words[:5], "own_choice", *words[7:]]) == 2
    assert "did you mean own_choices" in capsys.readouterr().err


@needs_harness
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_requests_equal_the_harness_own_model(tiny_llama, tiny, torch_oracle):
    """Its `hf` model asks PyTorch."""
    pytest.importorskip("accelerate", reason="the harness' `hf` model needs accelerate")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(tiny_llama), device="cpu", batch_size=1, max_length=48)
    ours = harness_model(lambda: tiny, Answering(max_length=48))

    def ask(kind: str, arguments: list[tuple]) -> list[list]:
        requests = [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]
        return [getattr(model, kind)(requests) for model in (ours, theirs)]

    found, expected = ask("loglikelihood", [*PAIRS, (LONG, " Mary")])
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], rtol=1e-4, atol=1e-4)
    assert [best for _, best in found] == [bool(best) for _, best in expected]
    found, expected = ask("loglikelihood_rolling", [(text,) for text in TEXTS if text])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    options = {"until": ["e", "\n"], "max_gen_toks": 12}
    found, expected = ask("generate_until", [(text, options) for text in TEXTS if text])
    assert found == expected


@pytest.fixture
def talking(save_llama, torch_oracle, tmp_path) -> tuple[Evaluated, Path]:
    """A model with a chat template."""
    folder = tmp_path / "talking"
    save_llama(folder, vocab_size=259, eos_token_id=258, bos_token_id=256)
    byte_tokenizer(special=("<|im_start|>", "<|im_end|>", "<|end|>"), chat_template=CHATML).save_pretrained(folder)
    return load_evaluated(str(folder)), folder


def test_turns_are_those_of_the_chat_template(talking, tiny_llama):
    """Each goes into the template as transformers puts it there; a model without one is refused before the harness."""
    evaluated, _ = talking
    user, begun = {"role": "user", "content": "Where is Mary?"}, {"role": "assistant", "content": "In the"}
    tokenizer = evaluated.tokenizer
    expected = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert chat_prompt(tokenizer, [user]) == expected == CHAT_QUESTION
    expected = tokenizer.apply_chat_template([user, begun], tokenize=False, continue_final_message=True)
    assert chat_prompt(tokenizer, [user, begun], answer_begun=True) == expected == f"{CHAT_QUESTION}In the"


@needs_harness
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_chats_equal_the_harness_own_model(talking, tiny_llama, own_tasks, tmp_path, capsys, torch_oracle):
    """Tasks of one's own with the chat template, by us and by its `hf` model."""
    pytest.importorskip("accelerate", reason="the harness' `hf` model needs accelerate")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    _, folder = talking
    words = ["eval", "harness", "--tasks", "own_choices,own_words,own_text", "--include-path", str(own_tasks), "--json"]
    words += ["--shots", "1", "--chat", "--out", str(tmp_path / "all.json")]
    assert cli.main([*words, "--model", str(tiny_llama)]) == 2
    assert "--chat: the model's tokenizer has no chat template" in capsys.readouterr().err
    assert cli.main([*words, "--model", str(folder)]) == 0
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(folder), device="cpu", batch_size=1),
        tasks=["own_choices", "own_words", "own_text"],
        task_manager=TaskManager(include_path=str(own_tasks)),
        num_fewshot=1,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        random_seed=0,
        numpy_random_seed=0,
        fewshot_random_seed=0,
    )
    ours = json.loads((tmp_path / "all.json").read_text())
    for name in ("own_choices", "own_words"):
        for one, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            asked = one["arguments"][0][0]
            assert asked.startswith("<|im_start|>user\n")
            assert asked.endswith("<|im_start|>assistant\n")
            assert asked.count("<|im_start|>") == 4  # an example is two turns
            assert one["arguments"] == json.loads(json.dumps(other["arguments"], default=str))
            for mine, his in zip(one["resps"], other["resps"], strict=True):
                if name == "own_words":
                    assert mine == his
                else:
                    assert float(mine[0][0]) == pytest.approx(his[0][0], rel=1e-4)
    perplexities = [found["results"]["own_text"]["word_perplexity,none"] for found in (ours, theirs)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-4)


def test_standard_errors_that_are_no_numbers_are_left_out():
    found = {"results": {"t": {"acc,none": 1, "acc_stderr,none": float("nan"), "f1,none": "N/A"}}, "n-samples": {}}
    found["n-samples"] = {"t": {"effective": 1}}
    assert scores(found)["tasks"] == {"t": {"acc": 1.0}}
