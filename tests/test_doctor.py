"""What `e2wm doctor` tells."""

from e2wm_jax import doctor


def test_extras_that_are_missing_are_named_whole(capsys, monkeypatch):
    """Names of extras stand in brackets, which a formatter of text may take for its own."""
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "lm-eval" else "1.0")
    monkeypatch.setattr(doctor, "_CHECKS", {"nothing": lambda: None})
    result = doctor.run(doctor.DoctorSettings())
    assert result["ok"]
    doctor.show(result)
    shown = " ".join(capsys.readouterr().out.split())
    assert "lm-eval - optional: e2wm eval harness; pip install 'e2wm_jax[harness]'" in shown
