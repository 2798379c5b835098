"""Options on the command line and in files: each given once, under our name or another's, or refused by name."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from e2wm_jax.cli import _parse, main
from e2wm_jax.commands import COMMANDS, settings_class
from e2wm_jax.errors import InputError
from e2wm_jax.options.names import NEAR, SAME
from e2wm_jax.options.parsing import options_of

TRAIN = ["--model", "m", "--data", "a.txt", "--out", "o"]
EVERY_OPTION = [(name, option) for name in COMMANDS for option in options_of(settings_class(name))]


def refusal(name: str, *words: str) -> str:
    with pytest.raises(InputError) as refused:
        _parse(name, list(words))
    return str(refused.value)


def value_for(option) -> str:
    return option.expects.split()[3].rstrip(",") if option.expects.startswith("choose one of") else "1"


# -------------------------------------------------------------------------------------------------------------- repeats


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_of_one_value_is_taken_once(name):
    for option in options_of(settings_class(name)):
        if option.several or option.positional:
            continue
        first = [f"--{option.name}"] if option.switch else [f"--{option.name}={value_for(option)}"]
        second = [f"--{option.opposite}"] if option.switch else [f"--{option.name.replace('-', '_')}", "2"]
        message = refusal(name, *first, *second)
        assert f"{first[0].replace('=', ' ')} is given already" in message, message


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_of_several_values_keeps_all(name):
    settings = settings_class(name)
    required = [
        word for option in options_of(settings) if option.required and not option.positional and not option.several
        for word in (f"--{option.name}", value_for(option))
    ]  # fmt: skip
    for option in options_of(settings):
        if option.several:
            value = value_for(option)
            others = [
                word for other in options_of(settings) if other.required and other.several and other is not option
                for word in (f"--{other.name}", value_for(other))
            ]  # fmt: skip
            words = [*required, *others, f"--{option.name}", value, f"--{option.name.replace('-', '_')}={value}"]
            got = getattr(_parse(name, words), option.field.name)
            assert len(got) == 2, (name, option.name)


def test_other_names_count_as_the_same_option():
    message = refusal("train", *TRAIN, "--learning-rate", "1e-3", "--lr", "2e-3")
    assert message == (
        "e2wm train: --lr: --learning-rate 1e-3 is given already, and it takes one value; leave one of them out"
    )


# ---------------------------------------------------------------------------------------------------------------- names


def test_names_of_the_field_mean_ours():
    words = (
        "--model-name-or-path m --train_file a.txt --output_dir o --learning-rate 1e-3 --num-train-epochs 2 "
        "--max_steps 7 --gradient-accumulation-steps 4 --max-grad-norm 1.0 --max-seq-length 64 --save-steps 5 "
        "--report-to tensorboard --lora-r 4 --lora-alpha 8 --lora_dropout 0 --target-modules q_proj,v_proj"
    )
    settings = _parse("train", words.split())
    assert (settings.model, settings.data, settings.out) == ("m", ("a.txt",), Path("o"))
    assert (settings.lr, settings.epochs, settings.steps, settings.accumulate) == (1e-3, 2, 7, 4)
    assert (settings.clip, settings.max_length, settings.checkpoint_every) == (1.0, 64, 5)
    assert settings.trackers == ("tensorboard",)
    lora = settings.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (4, 8.0, 0.0, "q_proj,v_proj")
    assert _parse("compare", ["--out", "o", "--lora.r", "3"]).lora_rank == 3


def test_no_tracker_is_said_as_elsewhere():
    assert _parse("train", [*TRAIN, "--report-to", "none"]).trackers == ("none",)


def test_limit_and_samples_are_one_in_every_evaluation():
    for name in ("samples", "limit"):
        assert _parse("eval plans", ["--data", "d", f"--{name}", "7"]).samples == 7
        assert _parse("eval harness", ["--model", "m", "--tasks", "t", f"--{name}", "7"]).limit == 7


def test_other_names_are_of_options_that_there_are_and_hide_none():
    ours = {option.name for _, option in EVERY_OPTION}
    assert set(SAME) <= ours
    assert not set(NEAR) & {name for name in ours if "." not in name and name not in ("text", "general-text")}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--per-device-train-batch-size", r"is per device elsewhere; --batch-size N counts"),
        ("--warmup_ratio", r"is a share: give --warmup-steps N"),
        ("--gradient-checkpointing", r"is --remat layers here"),
        ("--learning-rat", r"there is no option --learning-rat; perhaps --lr \(the same as --learning-rate\)\?$"),
        ("--stps", r"there is no option --stps; perhaps --steps\?$"),
        ("--zzzzzz", r"there is no option --zzzzzz; --help lists those there are$"),
        ("-lr", r"there is no option -lr"),
    ],
)
def test_a_name_that_is_none_is_answered_in_one_line(word, says):
    message = refusal("train", *TRAIN, word, "1")
    assert re.search(says, message), message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stray"], "'stray': belongs to no option"),
        (["--lr", "1", "2"], "--lr 1 2: takes one value, '2' is one too many"),
        (["--lr"], "--lr needs a value: Peak learning rate"),
        (["--fisher", ""], "--fisher '': is empty, as a shell variable that is not set; give a name, or leave it out"),
        (["--data", "a", ""], "--data '': is empty"),
        (["--resume=yes"], "--resume yes: takes no value; --resume or --no-resume"),
        (["--lora.rank", "x"], "--lora.rank x: must be a whole number"),
    ],
)
def test_values_too_many_and_too_few(words, says):
    assert says in refusal("train", *words, *TRAIN)


@pytest.mark.parametrize(
    ("words", "answer"),
    [([], "auto"), (["--append-eos"], "yes"), (["--no-append-eos"], "no"), (["--append-eos=no"], "no"),
     (["--append_eos", "auto"], "auto"), (["--append-eos", "--lr", "1"], "yes")],
)  # fmt: skip
def test_an_answer_may_be_given_as_a_switch(words, answer):
    assert _parse("train", [*TRAIN, *words]).append_eos == answer


def test_an_answer_is_given_once():
    assert "--no-append-eos" in refusal("train", *TRAIN, "--append-eos", "--no-append-eos")
    assert "takes one value" in refusal("train", *TRAIN, "--no-append-eos", "yes")


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_print_config_writes_is_what_config_reads(here, capsys):
    words = [*TRAIN, "--data", 'b "c".txt', "--lr", "1e-5", "--lora.rank", "3", "--resume", "--trackers", "wandb"]
    assert main(["train", *words, "--print-config"]) == 0
    (here / "run.toml").write_text(capsys.readouterr().out)
    assert tomllib.loads((here / "run.toml").read_text())["lora"]["rank"] == 3
    assert _parse("train", ["--config", "run.toml"]) == _parse("train", words)
    changed = _parse("train", ["--lora-r", "5", "--config=run.toml", "--data", "d", "--no-resume"])
    assert (changed.lora.rank, changed.data, changed.lr, changed.resume) == (5, ("d",), 1e-5, False)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "compare"])
def test_every_command_has_config_files(name, here, capsys):
    settings = settings_class(name)
    words = []
    for option in options_of(settings):
        if option.required:
            words += [value_for(option)] if option.positional else [f"--{option.name}", value_for(option)]
    assert main([*name.split(), *words, "--print-config"]) == 0
    (here / "c.toml").write_text(capsys.readouterr().out)
    assert _parse(name, ["--config", "c.toml"]) == _parse(name, words)


def test_the_config_of_a_run_is_a_config_file(here):
    record = {"model": "m", "data": ["a.txt"], "out": "o", "steps": 4, "clip": None, "lora": {"rank": 2}}
    (here / "config.json").write_text(json.dumps({**record, "content": {"a.txt": "0" * 64}}))
    settings = _parse("train", ["--config", "config.json", "--out", "p"])
    assert (settings.steps, settings.lora.rank, settings.out) == (4, 2, Path("p"))


def test_options_in_files_have_their_names_from_elsewhere_too(here):
    (here / "c.toml").write_text(
        '\ufeffmodel_name_or_path = "m"\r\ntrain-file = "a.txt"\noutput_dir = "o"\nlearning_rate = 1e-4\n'
        'report_to = "wandb"\nlora_alpha = 3.0\n"lora.dropout" = 0.5\n[lora]\nr = 2\ntarget_modules = "q_proj"\n'
    )
    settings = _parse("train", ["--config", "c.toml"])
    assert (settings.model, settings.data, settings.out) == ("m", ("a.txt",), Path("o"))
    assert (settings.lr, settings.trackers) == (1e-4, ("wandb",))
    lora = settings.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (2, 3.0, 0.5, "q_proj")


def test_the_file_of_a_comparison_is_written_whole(here, capsys):
    (here / "c.toml").write_text(
        'model = "m"\nstrengths = [1.0, 10.0]\n[train]\nlora = {rank = 4}\n[[arm]]\nname = "far"\nstrength = 2.0\n'
    )
    assert main(["compare", "--out", "o", "--config", "c.toml", "--steps", "3", "--print-config"]) == 0
    (here / "d.toml").write_text(capsys.readouterr().out)
    assert main(["compare", "--out", "o", "--config", "d.toml", "--print-config"]) == 0
    written = tomllib.loads(capsys.readouterr().out)
    assert written == tomllib.loads((here / "d.toml").read_text())
    assert (written["model"], written["steps"], written["strengths"]) == ("m", 3, ["1.0", "10.0"])
    assert written["train"] == {"lora": {"rank": 4}}
    assert written["arm"] == [{"name": "far", "strength": 2.0}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lrr = 1.0", r"c\.toml: there is no 'lrr'; perhaps lr\?"),
        ("[lora]\nranc = 1", r"c\.toml: lora: there is no 'ranc'; perhaps rank\?"),
        ("steps = 'many'", r"c\.toml: steps = 'many': must be a whole number"),
        ("optimizer = 'lion'", r"c\.toml: optimizer = 'lion': choose one of adamw, sgd"),
        ("steps = ", r"c\.toml: not valid TOML"),
        ("{", r"c\.toml: not valid JSON"),
        ("lr = 1.0\nlearning_rate = 2.0", r"c\.toml: lr and learning_rate are the same option; leave one of them out"),
        ("lora_r = 1\n[lora]\nrank = 2", r"c\.toml: lora_r and lora\.rank are the same option"),
        ("warmup_ratio = 0.1", r"c\.toml: warmup_ratio is a share: give --warmup-steps N"),
        ("lora = 3", r"c\.toml: lora = 3: must be a table"),
        ('{"steps": 1, "steps": 2}', r"c\.toml: not valid JSON \(the key 'steps' stands twice\)"),
        ('{"steps": 1' + "0" * 5000 + "}", r"c\.toml: not valid JSON \(a number of thousands of digits\)"),
        ('{"model": "\\ud83d"}', r"c\.toml: not valid JSON \(half of a surrogate pair"),
        ("model = 'm'", r"c\.toml: data is missing, and no --data is given: What to learn"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_named(here, text, says):
    (here / "c.toml").write_text(text)
    message = refusal("train", "--config", "c.toml")
    assert re.search(says, message), message


def test_a_config_that_is_not_there_or_twice(here):
    assert "no.toml: no such file" in refusal("train", "--config", "no.toml")
    assert "--config is given twice: a.toml and b.toml" in refusal("train", "--config", "a.toml", "--config=b.toml")
    assert "--config needs a TOML or JSON file" in refusal("train", "--config")


# ----------------------------------------------------------------------------------------------------- help, completion


def test_help_runs_on_and_says_other_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["help", "train"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"--clip .*Also --max-grad-norm", shown)
    for option in options_of(settings_class("train")):
        assert option.meaning in re.sub(r"\s+", " ", shown), option.name


def test_a_family_has_an_overview(capsys):
    for words in (["eval", "--help"], ["help", "eval"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert "e2wm eval qa" in shown
        assert "e2wm train" not in shown
    assert main(["help", "nonsense"]) == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_options(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "e2wm.sh").write_text(capsys.readouterr().out)

    def complete(*words: str) -> list[str]:
        script = (
            f'. ./e2wm.sh; COMP_WORDS=({" ".join(words)} ""); COMP_CWORD={len(words)}; _e2wm; echo "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ, capture_output=True, check=True)
        return done.stdout.decode().split()

    assert {"train", "eval", "doctor"} <= set(complete("e2wm"))
    assert complete("e2wm", "bench")[:2] == ["generate", "models"]
    assert {"--lora.rank", "--no-resume", "--config"} <= set(complete("e2wm", "train"))
    assert "--beams" in complete("e2wm", "eval", "generate")
    assert main(["completion", "fish"]) == 2


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("words", [[], ["help", "eval"], *([*name.split(), "--help"] for name in COMMANDS)])
def test_help_in_a_pipe_has_lines_that_one_can_read(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120, max(lines, key=len)


def test_help_says_all_that_a_command_says_of_itself(capsys):
    assert main(["sequence", "--help"]) == 0
    shown = capsys.readouterr().out
    told = " ".join(shown.split())
    assert "the adapter goes on from task to task, and between two tasks the regularizer takes up" in told
    assert "\n\ne2wm sequence --model smollm2-135m --out run " in shown  # an example stays as it is
