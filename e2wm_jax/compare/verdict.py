"""What came out of a comparison, in words that are computed from its numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from e2wm_jax.compare.arms import slug

Record = Mapping[str, Any]
_SHOWN = 1e-3  # the last decimal of nats in the table


def for_readers(record: Record) -> Record:
    """The record with the arm that is called none, for it has no regularizer, under a name that sentences can bear."""
    taken = {slug(name) for name in (*(a["name"] for a in record["arms"]), *(o["arm"] for o in record["trade_off"]))}
    shown = "no regularizer" if "lora" in taken else "LoRA"

    def renamed(value: Any) -> Any:
        return [renamed(one) for one in value] if isinstance(value, list) else shown if value == "none" else value

    arms = [{**arm, "name": renamed(arm["name"])} for arm in record["arms"]]
    names = ("arm", "series", "dominates", "clearly", "more_skill", "less_forgetting")
    standings = [{**one, **{name: renamed(one[name]) for name in names if name in one}} for one in record["trade_off"]]
    return {**record, "arms": arms, "trade_off": standings}


def verdict(standings: Sequence[Record]) -> list[str]:
    """What came out, in sentences: first what is more than chance, then what the means say by themselves."""
    means = {one["arm"]: one["forgetting"]["mean"] for one in standings}
    said = [sentence for one in standings for sentence in _beyond_chance(one, means)]
    if not said:
        said = ["No arm differs from another beyond chance: take more examples or seeds before a conclusion."]
    front = listed([one["arm"] for one in standings if one["front"]])
    return [*said, f"By the means alone, on the Pareto front, so that none is better in both: {front}."]


def _beyond_chance(one: Record, means: Mapping[str, float]) -> list[str]:
    name, both = one["arm"], one["clearly"]
    skill = [other for other in one.get("more_skill", ()) if other not in both]
    kept = [other for other in one.get("less_forgetting", ()) if other not in both]
    said = [f"Beyond chance, {name} has more skill and forgets less than {listed(both)}."] if both else []
    said += [f"Beyond chance, {name} has more skill than {listed(skill)}."] if skill else []
    if not kept:
        return said
    if name == "base":
        return [*said, f"Beyond chance, {listed(kept)} forgot some of what the base knows."]
    # The same texts are scored, so that a difference can be certain and too small for the table.
    small = [
        f"{other} (by less than {_SHOWN:g} nats)" if means[other] - means[name] < _SHOWN else other for other in kept
    ]
    return [*said, f"Beyond chance, {name} forgets less than {listed(small)}."]


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def error_bars(standings: Sequence[Record]) -> str:
    """What the intervals are."""
    bars = {"seeds": "one standard error over seeds", "examples": "95 % bootstrap intervals over examples"}
    kinds = {one["error_of"] for one in standings[1:]}
    if "seeds" not in kinds:
        return bars["examples"]
    single = ", ".join(one["arm"] for one in standings if one["error_of"] == "examples")
    return f"{bars['seeds']}; of {single}, with one run, {bars['examples']}"
