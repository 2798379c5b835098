"""e2wm_jax: teach language models from embodied experience without forgetting.

The modules follow the data: simulate -> tasks -> data -> models + lora -> fisher -> regularizers -> train ->
evaluate.  Each imports only from those before it; `e2wm --help` runs each.
"""

__version__ = "0.1.0"
