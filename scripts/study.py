"""The study: what E2WM's tasks teach a small model, what it forgets, and what each choice does to that.

    python scripts/study.py --out DIR [--size tiny|laptop|full] [--parts methods ablation estimators]
                            [--official DIR] [--babi PATH] [--text FILE ...] [--results docs/results.md]

    methods      LoRA, EWC-LoRA, L2, KL, replay; on training sets that we regenerate, and on the official ones
    ablation     EWC-LoRA without one of the four training tasks
    estimators   EWC-LoRA with F of given or sampled labels, few or many documents, stored in float32, bfloat16 or
                 uint8, and as the official run reads it
    plans        the plans that the models of methods on our own sets write, carried out in the world

Each part is a comparison of `e2wm compare` (a directory with report.html below --out), written as a TOML file from the
templates in scripts/study/ with the numbers of scripts/study/sizes.toml.  Interrupted, the same command goes on.  With
--results the tables and pictures of a Markdown file are written from what is there; text around them stays.

Without --official (the folder that has E2WM's train/ and eval/) our own evaluation sets, which share no plan, goal or
story with our training sets, stand in for the official ones.  pydoc:fisher, the default of --general-text, has 39
documents: give another text where `many_samples` is to say something.

What `laptop` took on two cores without a GPU, with --workers 2, in minutes of one core: a base 4, a run with its
evaluation 4 (few sets) to 7 (all, bAbI too), with KL or replay 11 to 16 (beside other programs), a Fisher of 64
documents 1.5.
"""

import argparse
import json
import string
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import study_plans
import study_results

from e2wm_jax.compare.run import run as compare
from e2wm_jax.compare.run import show
from e2wm_jax.compare.settings import CompareSettings
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.sets import find_sets
from e2wm_jax.experience.collect.command import CollectSettings, collect
from e2wm_jax.running.progress import say
from e2wm_jax.storage.files import write_json, write_text
from e2wm_jax.tasks.run import TasksSettings
from e2wm_jax.tasks.run import run as make_tasks

TEMPLATES = Path(__file__).parent / "study"
PARTS = ("methods", "ablation", "estimators", "plans")
# Training files with their published weights.
TASKS = {"plan_gen": 1.0, "act_recog": 0.7, "count": 1.0, "obj_move": 1.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen parts; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    args = parser().parse_args(words)
    try:
        size = sized(args.size, args.set)
        for name, config in configurations(args, size).items():
            say(f"== {name}")
            path = args.out / "configs" / f"{name}.toml"
            write_text(path, config)
            show(compare(CompareSettings(args.out / name, path, workers=args.workers, resume=True)))
        if "plans" in args.parts:
            say("== plans")
            study_plans.carry_out(args.out / "methods-own", regenerated(args.out, size), size, args.out / "plans")
        if args.results is not None:
            study_results.write(args.results, args.out, command=command_line(words))
            say(f"results: {args.results}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def sized(name: str, changes: Sequence[str]) -> dict[str, Any]:
    """The numbers of a size, with changes "name=value", the value as in TOML.

    Raises:
        InputError: for a name that there is not, or a value that is none.
    """
    size = tomllib.loads((TEMPLATES / "sizes.toml").read_text(encoding="utf-8"))[name]
    for change in changes:
        key, _, value = change.partition("=")
        if key not in size:
            raise InputError(f"--set {change}: there is no {key}; there are {', '.join(size)}")
        try:
            size[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"--set {change}: {value!r} is no value of TOML ({error})") from error
    return size


def configurations(args: argparse.Namespace, size: Mapping[str, Any]) -> dict[str, str]:
    """The TOML text of every comparison, by its name; makes the training sets that they read."""
    sources = {}
    if args.official is not None:
        if not (args.official / "train").is_dir() or not (args.official / "eval").is_dir():
            raise InputError(f"--official {args.official}: has no train/ and eval/; give E2WM's data folder")
        sources["official"] = args.official
    sources["own"] = regenerated(args.out, size)
    best = next(iter(sources.values()))
    fill = _fillings(args, size, best)
    found = {}
    for part in args.parts:
        if part == "methods":
            for source, folder in sources.items():
                found[f"methods-{source}"] = _filled("methods", fill | _mixtures(folder))
        elif part != "plans":
            found[part] = _filled(part, fill | _mixtures(best))
    return found


def regenerated(out: Path, size: Mapping[str, Any]) -> Path:
    """Training and evaluation sets from episodes of our own: planned ones and random ones."""
    made = {name: size[name] for name in ("goals", "simulations", "explorations")}
    folder = out / "data" / "-".join(map(str, made.values()))
    done = folder / "made.json"
    if done.is_file():
        return folder / "tasks"
    say(f"regenerating the training sets in {folder}")
    planned, explored = folder / "mcts", folder / "random"
    collect(CollectSettings(planned, "mcts", episodes=made["goals"], simulations=made["simulations"]))
    collect(CollectSettings(explored, "random", episodes=made["explorations"]))
    write_json(done, {**made, "statistics": make_tasks(TasksSettings((planned, explored), folder / "tasks"))})
    return folder / "tasks"


def command_line(words: Sequence[str]) -> str:
    """What reproduces the results."""
    return " ".join(["python scripts/study.py", *words])


def _fillings(args: argparse.Namespace, size: Mapping[str, Any], best: Path) -> dict[str, str]:
    """What the templates' names stand for, as TOML."""
    texts = list(args.text) or ["pydoc:held-out"]
    sets = {one.name: str(one.path) for one in find_sets(best / "eval")}
    chosen, few = ([sets[name] for name in size[key] if name in sets] for key in ("sets", "few_sets"))
    values: dict[str, Any] = {
        **size,
        "model": args.model,
        "base_dtype": args.base_dtype,
        "text": texts,
        "general_text": list(args.general_text),
        "evaluation": chosen,
        "evaluation_and_babi": [*chosen, *([str(args.babi)] if args.babi else [])],
        "few_evaluation": few,
        "middle_ewc": sorted(size["ewc"])[len(size["ewc"]) // 2],
    }
    found = {name: json.dumps(value) for name, value in values.items()}  # of texts, numbers and lists also TOML
    return found | {"common": _filled("common", found)}


def _mixtures(folder: Path) -> dict[str, str]:
    """The mixture of all training files, and each mixture without one of them."""
    files = {}
    for task in TASKS:
        places = sorted((folder / "train").glob(f"train_{task}.json*"))
        files[task] = next((str(path) for path in places if path.name.endswith((".json", ".json.gz"))), None)
        if files[task] is None:
            raise InputError(f"{folder / 'train'}: no train_{task}.json; it needs {', '.join(TASKS)}")
    mixtures = {"data": list(TASKS)} | {f"without_{task}": [one for one in TASKS if one != task] for task in TASKS}
    return {
        name: json.dumps(" ".join(f"{TASKS[task]:g} {files[task]}" for task in tasks))
        for name, tasks in mixtures.items()
    }


def _filled(template: str, fill: Mapping[str, str]) -> str:
    return string.Template((TEMPLATES / f"{template}.toml").read_text(encoding="utf-8")).substitute(fill)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write, or to go on in")
    parser.add_argument("--size", choices=("tiny", "laptop", "full"), default="laptop")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="smollm2-135m", help="directory, .gguf file, hub id, or smollm2-135m")
    parser.add_argument("--base-dtype", default="float32", help="of the base: float32, bfloat16, int8 or nf4")
    parser.add_argument("--official", type=Path, help="folder of E2WM's train/ and eval/")
    parser.add_argument("--babi", type=Path, help="folder or archive of bAbI's files")
    parser.add_argument("--text", nargs="*", default=[], help="corpora of retention; default: pydoc:held-out")
    parser.add_argument(
        "--general-text", nargs="*", default=["pydoc:fisher"], help="of the Fisher, of kl and of replay; another text"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes side by side, as of e2wm compare")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="changes of the size's numbers")
    parser.add_argument("--results", type=Path, help="Markdown file to write; its pictures go into images/ beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
