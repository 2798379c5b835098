"""In tests every call of the modules named here checks the shapes and types of arrays that their annotations state."""

from jaxtyping import install_import_hook

# Modules that name plain protocols, such as a weight of any kind, cannot be checked at run time, nor those that take
# arrays of NumPy where they say jax's.
CHECKED = ("models.head", "train.passes")
install_import_hook([f"e2wm_jax.{name}" for name in CHECKED], "beartype.beartype")
