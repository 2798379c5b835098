"""The part `plans` of the study: what becomes of each arm's plans when they are carried out in the world.

ROUGE compares words; here each sentence is executed in the scene of its example (`e2wm eval plans`).  Asked are the
held-out goals of the regenerated sets, of which the worlds are known, and the models that were trained on those sets.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2wm_jax.compare.record import read_record
from e2wm_jax.evaluate.plans import run as plans
from e2wm_jax.running.progress import say
from e2wm_jax.storage.files import write_json

PLANS_FILE = "plans.json"


def carry_out(comparison: Path, tasks: Path, size: Mapping[str, Any], out: Path) -> None:
    """Write ``out``/plans.json: scores of references, empty plans, the base, and the first seed of each arm.

    What an interrupted call has written is not written again.

    Raises:
        InputError: if the comparison has not been made, or without the scenes.
    """
    record = read_record(comparison)
    done = {arm["name"]: [run["folder"] for run in arm["runs"] if run["sets"]] for arm in record["arms"]}
    adapters = {"base": (), **{name: (comparison / runs[0] / "adapter",) for name, runs in done.items() if runs}}
    found = {}
    for arm, adapter in adapters.items():
        say(f"plans of {arm}")
        settings = plans.PlansSettings(
            tasks / "eval/gen/plan_gen.json",
            predictions=out / f"{arm}.jsonl",
            model=record["config"]["model"],
            adapter=adapter,
            beams=size["beams"],
            max_new_tokens=size["max_new_tokens"],
            base_dtype=record["config"]["base_dtype"],
            resume=True,
        )
        result = plans.run(settings)
        plans.show(result)
        bounds = {name: result.pop(name) for name in ("references", "empty")}
        found[arm] = result
    write_json(out / PLANS_FILE, {"arms": found, **bounds})
