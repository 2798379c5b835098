"""`e2wm eval plans`: plans in words carried out in the world, which is what ROUGE cannot see.

Each sentence is read back as an action (`plan_text`), its names are given objects of the example's scene
(`plan_steps`), and the world executes it; one that fails changes nothing. Over all examples with a world
(`plan_worlds`):

    parsed_steps       share of the sentences that are an action
    executable_steps   share of the sentences that were executed
    executable_plans   share of the plans that have a sentence and whose every sentence was executed
    goals_reached      mean share of a plan's goal facts that have come about at the end; facts that held from the
                       beginning are no goals, and closeness counts only where nothing else is asked for
    goals_complete     share of the plans with their whole goal reached

The last two are of the examples whose goal is known. The references' scores say how much a perfect model could get,
those of an empty plan what comes for nothing. Intervals are bootstrapped over examples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from e2wm_jax.data.source import TaskExample, read_task
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.model import load_evaluated, open_evaluated
from e2wm_jax.evaluate.plans import worlds as plan_worlds
from e2wm_jax.evaluate.plans.steps import PlanResult, carry_out
from e2wm_jax.evaluate.plans.text import sentences
from e2wm_jax.evaluate.settings import PlansSettings
from e2wm_jax.evaluate.statistics import bootstrap_interval
from e2wm_jax.evaluate.texts import generation
from e2wm_jax.evaluate.texts.prompting import Prompting
from e2wm_jax.models.decoding.generate import Decoding
from e2wm_jax.running.progress import progress_bar
from e2wm_jax.storage.files import read_json_lines, write_json_lines
from e2wm_jax.tasks.source import Source
from e2wm_jax.worlds.household.engine import Engine, open_world
from e2wm_jax.worlds.household.homes import files as scene_files
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.world import World

NO_PREDICTION = "no prediction for it"
SCORES = ("parsed_steps", "executable_steps", "executable_plans", "goals_reached", "goals_complete")


def run(settings: PlansSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, scenes that cannot be loaded, or where no example has a world.
    """
    check_at_least(("--samples", settings.samples, 1), ("--batch-size", settings.batch_size, 1))
    Decoding(settings.max_new_tokens, settings.beams).check()
    if settings.adapter and settings.model is None:
        raise InputError("--adapter needs --model; or give --predictions of `e2wm eval generate`")
    open_world(settings.engine, settings.dialect or "vh23")  # refuses names that it does not know
    everything = read_task(settings.data)
    found = find_worlds(settings, everything)[: settings.samples]
    given: Mapping[int, str] | None = None
    if settings.model is None and settings.predictions is not None:
        given = read_predictions(settings.predictions, everything)
        found = [one if isinstance(one, str) or i in given else NO_PREDICTION for i, one in enumerate(found)]
    worlds = {i: source for i, source in enumerate(found) if isinstance(source, Source)}
    skipped = Counter(source for source in found if isinstance(source, str))
    if not worlds:
        reasons = "; ".join(f"{number}: {reason}" for reason, number in skipped.items())
        way_out = "write more predictions" if NO_PREDICTION in skipped else "give --experiences DIR"
        raise InputError(f"{settings.data}: no example can be carried out ({reasons}); {way_out}")
    references = {index: everything[index].ref for index in worlds}
    results = {"reference": _carry_out(references, worlds, settings, "reference")}  # a missing scene shows here
    results["empty"] = _carry_out(dict.fromkeys(worlds, ""), worlds, settings, "empty plan")
    if settings.model is not None:
        given = _predictions(settings, everything, worlds)
    if given is not None:
        results["prediction"] = _carry_out(given, worlds, settings, "prediction")
    if settings.records is not None:
        write_json_lines(settings.records, _records(worlds, results))
    ours = score(results["prediction"]) if "prediction" in results else {}
    bounds = {"references": score(results["reference"]), "empty": score(results["empty"])}
    known = sum(bool(result.goal) for result in results["reference"])
    return {**ours, "n": len(worlds), "goals_known": known, "skipped": dict(skipped), **bounds}


def show(result: dict[str, Any]) -> None:
    """A row per kind of plan, with intervals, then what went wrong and what was left out."""
    rows = {"model": result, "references": result["references"], "empty plan": result["empty"]}
    print(f"{'':<12}" + "".join(f"{name:>26}" for name in SCORES))
    for name, row in rows.items():
        if "executable_steps" in row:
            print(f"{name:<12}" + "".join(f"{_cell(row, key):>26}" for key in SCORES))
    for name, row in rows.items():
        if row.get("trouble"):
            print(f"{name}: " + ", ".join(f"{number} sentences {reason}" for reason, number in row["trouble"].items()))
    print(f"{result['n']} examples, the goals of {result['goals_known']} known")
    for reason, number in result["skipped"].items():
        print(f"skipped {number}: {reason}")


def _cell(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return "-"
    interval = row["intervals"].get(key)
    return f"{row[key]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def find_worlds(settings: PlansSettings, examples: Sequence[TaskExample]) -> list[Source | str]:
    """For each example of a whole file the world to carry it out in, or why there is none.

    Raises:
        InputError: naming what is malformed or missing.
    """
    path = plan_worlds.beside(settings.data)
    found: Sequence[Source | str]
    if settings.experiences:
        found = plan_worlds.from_experiences(settings.experiences, examples)
    elif path.is_file():
        found = plan_worlds.read_sources(path, examples)
    else:
        found = plan_worlds.from_robothow(
            examples, settings.dialect or ("vh19" if settings.engine == "array" else "vh23")
        )
    if settings.dialect is None:
        return list(found)
    return [one if isinstance(one, str) else replace(one, dialect=settings.dialect) for one in found]


def score(results: Sequence[PlanResult]) -> dict[str, Any]:
    """`SCORES` of plans, their intervals, the number of sentences, and how many failed for which reason; None for
    shares of nothing.

    Returns:
        {"parsed_steps": x, ..., "sentences": n, "trouble": {reason: n}, "intervals": {"parsed_steps": [low, high]}}.
    """
    lengths = [len(result.steps) for result in results]
    known = [result for result in results if result.goal]
    per_plan: dict[str, tuple[list[float], list[int]]] = {
        "parsed_steps": ([_share(sum(s.parsed for s in r.steps), len(r.steps)) for r in results], lengths),
        "executable_steps": ([_share(r.executed, len(r.steps)) for r in results], lengths),
        "executable_plans": ([float(0 < len(r.steps) == r.executed) for r in results], [1] * len(results)),
        "goals_reached": ([len(r.reached) / len(r.goal) for r in known], [1] * len(known)),
        "goals_complete": ([float(r.reached == r.goal) for r in known], [1] * len(known)),
    }
    scores: dict[str, Any] = {}
    intervals = {}
    for name, (values, weights) in per_plan.items():
        total = sum(weights)
        scores[name] = sum(v * w for v, w in zip(values, weights, strict=True)) / total if total else None
        if total:  # a plan without sentences says nothing about shares of sentences
            pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
            shares, sizes = zip(*pairs, strict=True)
            intervals[name] = list(bootstrap_interval(shares, weights=sizes))
    trouble = Counter(step.trouble for result in results for step in result.steps if step.trouble is not None)
    return {**scores, "sentences": sum(lengths), "trouble": dict(sorted(trouble.items())), "intervals": intervals}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _predictions(
    settings: PlansSettings, examples: Sequence[TaskExample], worlds: Mapping[int, Source]
) -> dict[int, str]:
    """The model's plan for each example with a world."""
    assert settings.model is not None
    opened, decoding = open_evaluated(settings.model), Decoding(settings.max_new_tokens, settings.beams)
    prompting = Prompting(chat=settings.chat, too_long=settings.too_long)
    way_out = "--too-long truncate cuts prompts from the left"
    fitted = generation.fitting(opened, {index: examples[index] for index in worlds}, decoding, prompting, way_out)
    made = generation.predict(
        load_evaluated(opened, settings.adapter, settings.base_dtype),
        fitted.examples,
        decoding,
        prompting,
        batch_size=settings.batch_size,
        path=settings.predictions,
        resume=settings.resume,
    )
    return {record["index"]: record["prediction"] for record in made}


def read_predictions(path: Path, examples: Sequence[TaskExample]) -> dict[int, str]:
    """The plans in a file of `eval generate --predictions` or `eval all --out`, by their index in the task file.

    Raises:
        InputError: naming file and line of a malformed record, or of one with another reference than the example's.
    """
    found: dict[int, str] = {}
    for line, record in read_json_lines(path):
        index, text = record.get("index"), record.get("prediction")
        if type(index) is not int or not 0 <= index < len(examples) or not isinstance(text, str):
            raise InputError(f'{path}:{line}: not a prediction; expected {{"index": 0, "prediction": "..."}}')
        if record.get("reference", examples[index].ref) != examples[index].ref:
            raise InputError(f"{path}:{line}: its reference is not that of {examples[index].where}; of another file?")
        found[index] = text
    return found


def _carry_out(
    plans: Mapping[int, str], worlds: Mapping[int, Source], settings: PlansSettings, kind: str
) -> list[PlanResult]:
    """What becomes of the examples' plans, in the order of the worlds; a plan ends with its first line."""
    results = []
    with progress_bar(f"{kind}s", len(worlds), "plan") as bar:
        for index, source in worlds.items():
            scene = _scene_of(source, settings.scenes)
            world = _world_of(source, settings.engine)
            plan = sentences(plans[index].split("\n")[0])
            results.append(carry_out(world, scene, plan, goal=source.goal, things=source.things))
            bar.update()
    return results


def _world_of(source: Source, engine: Engine) -> World[Any]:
    """The world of an example; an error names the line that asks for it."""
    try:
        return _world(engine, source.dialect)
    except InputError as error:
        raise InputError(f"{source.where}: {error}") from error


@lru_cache(maxsize=8)
def _world(engine: Engine, dialect: str) -> World[Any]:
    return open_world(engine, dialect)


def _scene_of(source: Source, folder: Path | None) -> Scene:
    """The scene of an example; an error names the line that asks for it."""
    path = scene_files.path_of(source.scene)
    name = source.scene if path is None else scene_files.with_path(source.scene, path.absolute())
    try:
        return _scene(name, folder)
    except InputError as error:
        way_out = "; give --scenes FOLDER if it has moved" if path is not None and folder is None else ""
        raise InputError(f"{source.where}: scene {error}{way_out}") from error


@lru_cache(maxsize=8)
def _scene(name: str, folder: Path | None) -> Scene:
    """A scene by its name; that of a graph that has moved is looked up in the folder."""
    return scene_files.load(name, folder)


def _records(worlds: Mapping[int, Source], results: Mapping[str, list[PlanResult]]) -> list[dict[str, Any]]:
    records = []
    for number, (index, source) in enumerate(worlds.items()):
        kinds = {kind: ours[number] for kind, ours in results.items() if kind != "empty"}
        plans = {
            kind: {"steps": [step._asdict() for step in result.steps], "reached": sorted(result.reached)}
            for kind, result in kinds.items()
        }
        goal = sorted(results["reference"][number].goal)
        records.append({"index": index, **source.to_json(), "goal": goal, **plans})
    return records
