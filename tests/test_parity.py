"""scripts/parity.py in its smallest form."""

import re

import parity


def test_a_small_model_is_within_what_the_script_is_to_show(tiny_llama, capsys):
    parity.main(["--model", str(tiny_llama)])
    logits, fisher, _ = capsys.readouterr().out.splitlines()
    for line, bound in ((logits, 1e-5), (fisher, 1e-4)):
        assert 0 < float(re.search(r": +(\d.\de-\d+)", line)[1]) < bound
