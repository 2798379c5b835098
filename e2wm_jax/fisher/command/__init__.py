"""`e2wm fisher`: settings, plan, the run over a corpus, its page."""
