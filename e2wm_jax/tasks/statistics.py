"""What task files hold: sizes, lengths, answers, and how often the commonest one is right."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from e2wm_jax.tasks.build import TaskSets
from e2wm_jax.tasks.example import Choice, Example
from e2wm_jax.tasks.household.sets import BY_FILE


def statistics(sets: TaskSets) -> dict[str, Any]:
    """The seed, what became of the episodes, notes, and per file: examples, words of the inputs and answers."""
    return {
        "seed": sets.seed,
        "episodes": sets.episodes,
        "unseen_tasks": list(sets.unseen),
        "notes": list(sets.notes),
        "files": {name: _file_statistics(name, examples) for name, examples in sets.files.items()},
    }


def _file_statistics(name: str, examples: Sequence[Example]) -> dict[str, Any]:
    words = [len(example.input.split()) for example in examples]
    answers = Counter(example.gold for example in examples)
    kinds = Counter(BY_FILE[name].answers(example.gold) for example in examples).most_common()
    summary: dict[str, Any] = {
        "n": len(examples),
        "input_words": {"min": min(words), "median": median(words), "max": max(words)},
        "distinct_answers": len(answers),
        "answers": dict(sorted(kinds, key=lambda pair: (-pair[1], pair[0]))),
        "majority": round(max(answers.values()) / len(examples), 4),
    }
    choices = [example for example in examples if isinstance(example, Choice)]
    if choices:
        positions = Counter(example.answer_list.index(example.answer) for example in choices)
        summary["gold_positions"] = [positions[index] for index in range(len(choices[0].answer_list))]
    return summary
