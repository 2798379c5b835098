"""The layout is the data flow: each module imports only from earlier steps, and light steps stay light."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "e2wm_jax"

# Later steps import from earlier ones and from their own.
STEPS = (
    ("errors",),
    ("lazy", "config", "options", "storage", "running", "report"),  # the ground
    ("worlds",),
    ("experience",),
    ("tasks",),
    ("data",),
    ("sharding",),
    ("models",),
    ("lora", "storage.adapter_config", "storage.adapter_files"),
    ("fisher", "kernels"),  # each kernel belongs to the step that uses it
    ("regularizers",),
    ("train",),
    ("evaluate",),
    ("bench",),
    ("export",),
    ("compare",),
    ("doctor",),
    ("demo",),
    ("pages",),
    ("commands",),
    ("completion",),
    ("cli",),
    ("__main__",),
)
STEP_OF = {name: number for number, names in enumerate(STEPS) for name in names}
LIGHT = (
    *("errors", "lazy", "config", "options", "worlds", "experience", "tasks", "data"),
    *("storage.files", "storage.metrics", "storage.gguf_file", "storage.model_files", "storage.tensor_files"),
    *("running.progress", "running.compilation", "running.compilation_cache", "running.processes"),
)
# The engine for accelerators and its search: of the light steps' modules, those that import jax. The others leave it
# alone.
ON_DEVICE = ("worlds.household.batched", "experience.search.batched")


def is_under(name: str, folders: tuple[str, ...]) -> bool:
    """Whether a module is one of these, or lies in one of them."""
    return any(f"{name}.".startswith(f"{folder}.") for folder in folders)


def step_of(name: str) -> int | None:
    """Where a module stands in the order; of nested names the longest counts."""
    known = [known for known in STEP_OF if is_under(name, (known,))]
    return STEP_OF[max(known, key=len)] if known else None


def sources() -> dict[str, ast.Module]:
    """Every module of the package, by its dotted name without "e2wm_jax."."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] == "kernels":
            continue
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    del found["__init__"]  # the package itself: only its version
    return found


SOURCES = sources()
LIGHT_MODULES = [name for name in SOURCES if is_under(name, LIGHT) and not is_under(name, ON_DEVICE)]


def imported(node: ast.AST) -> list[str]:
    """Full names of what an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def at_import_time(tree: ast.Module) -> list[str]:
    """What is imported when the module is: not within functions."""
    names, nodes = [], list(tree.body)
    while nodes:
        node = nodes.pop()
        names += imported(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return names


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def import_all(names: list[str], *, blocked: str) -> str:
    modules = [f"e2wm_jax.{name}" for name in names if name != "__main__"]
    return (
        f"import sys, importlib\nsys.modules[{blocked!r}] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )


def test_every_module_belongs_to_a_step() -> None:
    assert not [name for name in SOURCES if step_of(name) is None], "place new modules in STEPS"


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_to_earlier_steps(name: str) -> None:
    for full_name in (target for node in ast.walk(SOURCES[name]) for target in imported(node)):
        package, _, target = full_name.partition(".")
        if package == "e2wm_jax" and target and target != "__version__":
            step, own = step_of(target), step_of(name)
            assert step is not None, f"{name} imports {full_name}, which is none"
            assert own is not None
            assert step <= own, f"{name} imports {full_name}, a later step"


def test_packages_import_nothing_before_a_name_is_asked_for() -> None:
    """Nothing of other libraries, and of ours the six packages and `lazy`."""
    program = (
        "import sys\nbefore = set(sys.modules)\n"
        "import e2wm_jax, e2wm_jax.data, e2wm_jax.models, e2wm_jax.fisher, e2wm_jax.regularizers, e2wm_jax.train\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))\n"
        "print(sum(name.startswith('e2wm_jax') for name in sys.modules))"
    )
    assert run(program).split() == ["e2wm_jax", "7"]


PACKAGES = ("", *(name for name in SOURCES if "lazy.exports" in ast.unparse(SOURCES[name]) and name != "lazy"))


@pytest.mark.parametrize("name", PACKAGES)
def test_lazy_names_are_those_that_type_checkers_see(name: str) -> None:
    package = importlib.import_module(f"e2wm_jax.{name}".rstrip("."))
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    (branch,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for node in branch.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            seen[alias.asname or alias.name] = getattr(importlib.import_module(str(node.module)), alias.name)
    assert sorted(seen) == package.__all__
    assert set(seen) <= set(dir(package))
    assert all(getattr(package, public) is value for public, value in seen.items())


def test_an_unknown_name_is_answered_by_those_that_there_are() -> None:
    import e2wm_jax

    with pytest.raises(AttributeError, match=r"no attribute 'load'; it has .*load_model, load_tokenizer"):
        getattr(e2wm_jax, "load")  # noqa: B009
    assert e2wm_jax.lora.attach is importlib.import_module("e2wm_jax.lora").attach


def test_neighbors_of_one_step_do_not_import_each_other_in_circles() -> None:
    graph = {
        name: {
            target for node in ast.walk(tree) for target in map(module_of, imported(node)) if target and target != name
        }
        for name, tree in SOURCES.items()
    }
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"modules that import each other in a circle, or from one: {sorted(graph)}"


def module_of(full_name: str) -> str | None:
    """ "data.batch" of "e2wm_jax.data.batch" and of "e2wm_jax.data.batch.Row"."""
    name = full_name.removeprefix("e2wm_jax.")
    return next((n for n in (name, name.rpartition(".")[0]) if full_name != name and n in SOURCES), None)


@pytest.mark.parametrize("name", LIGHT_MODULES)
def test_text_and_worlds_do_not_import_jax(name: str) -> None:
    """Their worker processes must not start an accelerator."""
    targets = at_import_time(SOURCES[name])
    assert not [target for target in targets if target.split(".")[0] in ("jax", "flax", "optax")]
    assert not [target for target in targets if is_under(module_of(target) or "", ON_DEVICE)]


def test_text_and_worlds_run_where_jax_is_missing() -> None:
    run(import_all(LIGHT_MODULES, blocked="jax"))


def test_everything_runs_where_torch_is_missing() -> None:
    run(import_all(list(SOURCES), blocked="torch"))


def test_torch_is_imported_where_its_files_are_read_only() -> None:
    users = {
        n
        for n, tree in SOURCES.items()
        for node in ast.walk(tree)
        if any(t.split(".")[0] == "torch" for t in imported(node))
    }
    # Benchmarks measure it in processes of their own.
    peers = {f"bench.peers.{name}" for name in ("fisher", "peft", "penalty", "transformers")}
    assert users <= {"storage.tensor_files", *peers}
    assert not any(t.split(".")[0] == "torch" for tree in SOURCES.values() for t in at_import_time(tree))


def test_kernels_shadow_no_other_package() -> None:
    """transformers imports any top-level `kernels` that has an __init__.py: see kernels/README.md."""
    assert (PACKAGE / "kernels").resolve() == ROOT / "kernels"
    assert not (ROOT / "kernels/__init__.py").exists()
    assert run("import sys, e2wm_jax; print('kernels' in sys.modules)").strip() == "False"


def test_the_step_and_its_settings_import_no_world() -> None:
    loaded = run("import sys, e2wm_jax.train.step, e2wm_jax.train.settings; print(*sys.modules)").split()
    worlds = ("e2wm_jax.worlds", "e2wm_jax.experience", "e2wm_jax.tasks")
    assert not [name for name in loaded if name.startswith(worlds)]


def test_what_writes_pages_waits_with_matplotlib_for_a_chart() -> None:
    program = (
        "import sys, e2wm_jax.compare.page, e2wm_jax.demo.page, e2wm_jax.train.run\n"
        "from e2wm_jax.report import Section, page, paragraph\n"
        "page('words alone', [Section('one', [paragraph('text')])])\n"
        "print('matplotlib' in sys.modules)"
    )
    assert run(program).strip() == "False"


def test_importing_the_command_line_starts_no_accelerator() -> None:
    program = (
        "import sys, e2wm_jax.cli\n"
        "bridge = sys.modules.get('jax._src.xla_bridge')\n"
        "print(bool(bridge and bridge._backends))"
    )
    assert run(program).strip() == "False"


def test_from_the_step_to_a_matmul_in_seven_hops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of ours under way where an adapted weight multiplies; a closure counts as what it stands in."""
    jax, lora, config = (importlib.import_module(name) for name in ("jax", "e2wm_jax.lora", "e2wm_jax.config"))
    batch, decoder, step = (
        importlib.import_module(f"e2wm_jax.{name}") for name in ("data.batch", "models.decoder", "train.step")
    )
    model, chains = config.MODELS["tiny"], []
    spec = lora.adapter_spec(model, config.LoraConfig(rank=2))
    rows = batch.collate([batch.Row(np.arange(8, dtype=np.int32), 3)], length=8, num_targets=5, batch_size=1)
    settings = step.StepConfig(lora.Scope(model, spec), dropout=0.1)
    matmul = lora.LoraWeight.matmul

    def watched(self: Any, x: Any) -> Any:
        frame, chain = sys._getframe(1), list[str]()
        while frame is not None:
            name = frame.f_code.co_qualname.split(".<locals>")[0]
            if Path(frame.f_code.co_filename).is_relative_to(PACKAGE) and name not in chain[:1]:
                chain.insert(0, name)
            frame = frame.f_back
        chains.append(chain)
        return matmul(self, x)

    monkeypatch.setattr(lora.LoraWeight, "matmul", watched)
    params = jax.eval_shape(lambda key: decoder.initialize(model, key), jax.random.key(0))
    state = jax.eval_shape(
        lambda key: step.initial_state(settings, lora.initialize(model, spec, key)), jax.random.key(0)
    )
    step.train_step.lower(settings, state, step.Controls(1e-3), params, (), jax.tree.map(lambda x: x[None], rows))
    assert chains
    for chain in chains:
        assert (chain[0], chain[-1]) == ("train_step", "matmul")
        assert len(chain) - 1 <= 7, chain
