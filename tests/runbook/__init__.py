"""The runbook and the drills, played: a world is made ill as a page says, and its own blocks look, cure and confirm."""
