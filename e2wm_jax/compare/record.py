"""comparison.json: what a comparison is, and what it has found so far."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2wm_jax.compare import jobs
from e2wm_jax.compare.plan import ComparePlan, as_config, content_of, from_config
from e2wm_jax.compare.trade_off import trade_off
from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import read_json, write_json

RECORD_FILE = "comparison.json"
VERSION = 1


def claim(plan: ComparePlan, *, resume: bool) -> None:
    """Write down what `out` is for, or with `resume` see that it is for the same; arms and seeds may be new.

    Raises:
        InputError: if `out` holds something else, naming the first difference.
    """
    path = plan.out / RECORD_FILE
    config = as_config(plan) | {"content": content_of(plan)}
    if resume and path.is_file():
        _check_same(read_json(path)["config"], config, plan.out)
    elif path.is_file():
        raise InputError(f"--out {plan.out}: already holds a comparison; continue it with --resume, or give another")
    elif plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        raise InputError(f"--out {plan.out}: holds something else; give a new or empty directory")
    write_json(path, _assembled(plan, config))


def update(plan: ComparePlan) -> dict[str, Any]:
    """Gather what is done into comparison.json; returns it."""
    path = plan.out / RECORD_FILE
    record = _assembled(plan, read_json(path)["config"])
    write_json(path, record)
    return record


def read_plan(out: Path) -> ComparePlan:
    """The plan of a comparison.

    Raises:
        InputError: if there is none.
    """
    return from_config(read_record(out)["config"], out)


def read_record(out: Path) -> dict[str, Any]:
    """comparison.json of a directory.

    Raises:
        InputError: if it has none, or one of another version.
    """
    path = out / RECORD_FILE
    if not path.is_file():
        raise InputError(f"{out}: holds no {RECORD_FILE}; give a directory of `e2wm compare`")
    record = read_json(path)
    if record.get("version") != VERSION:
        raise InputError(f"{path}: version {record.get('version')!r}; this program reads version {VERSION}")
    return record


def _assembled(plan: ComparePlan, config: dict[str, Any]) -> dict[str, Any]:
    base = jobs.result(plan, jobs.CompareJob(jobs.BASE))
    arms: list[dict[str, Any]] = []
    for arm in plan.arms:
        runs: list[dict[str, Any]] = []
        for seed in plan.seeds:
            if found := jobs.result(plan, jobs.CompareJob("run", arm.name, seed)):
                folder = str(plan.run_folder(arm, seed).relative_to(plan.out))
                kept: dict[str, Any] = {
                    key: found[key] for key in ("sets", "summary", "seconds", "failed") if key in found
                }
                runs.append({"seed": seed, "folder": folder, **kept})
        arms.append({"name": arm.name, "series": arm.series, "train": arm.train, "fisher": arm.fisher, "runs": runs})
    record: dict[str, Any] = {
        "version": VERSION,
        "config": config,
        "machines": list(jobs.machines(plan)),
        "base": None if base is None else {"folder": jobs.BASE, "sets": base["sets"], "seconds": base["seconds"]},
        "arms": arms,
    }
    record["trade_off"] = [] if base is None else trade_off(record, plan.out)
    return record


def _check_same(earlier: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Everything is as it was, but for arms and seeds that are new."""
    way_out = "repeat what it was started with, or give another --out"
    for name, value in now.items():
        before = earlier.get(name)
        if name in ("arms", "content"):
            continue
        if name == "seeds":
            gone: Any = [seed for seed in before or () if seed not in value]
            if gone:
                raise InputError(f"--resume: {out} has seed {gone[0]}, which is missing now; {way_out}")
        elif before != value:
            raise InputError(f"--resume: {out} has {name} = {_difference(before, value)}; {way_out}")
    arms = {arm["name"]: arm for arm in now["arms"]}
    for arm in earlier["arms"]:
        if arm["name"] not in arms:
            raise InputError(f"--resume: {out} has arm {arm['name']}, which is missing now; {way_out}")
        if (new := arms[arm["name"]]) != arm:
            raise InputError(f"--resume: {out} has arm {arm['name']} with {_difference(arm, new)}; {way_out}")
    for name, digest in earlier["content"].items():
        if now["content"].get(name, digest) != digest:
            raise InputError(f"--resume: {name} has changed since {out} was started; restore it, or give another --out")


def _difference(before: Any, now: Any, name: str = "") -> str:
    """The first value that differs, by its place: "train.lr = 0.001, not 0.002"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in (*before, *now):
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    return f"{name} = {before!r}, not {now!r}" if name else f"{before!r}, not {now!r}"
