"""In tests every call of the modules named here checks the shapes and types of arrays that their annotations state."""

from jaxtyping import install_import_hook

# Modules that name plain protocols, such as a weight of any kind, cannot be checked at run time.
CHECKED = ("fisher.examples", "models.head", "regularizers.ewc", "regularizers.quadratic", "train.passes")
install_import_hook([f"e2wm_jax.{name}" for name in CHECKED], "beartype.beartype")
