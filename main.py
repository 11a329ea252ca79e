"""Train a small cascade and draw with it: ``python main.py``, a few minutes on two cores."""

from minimagen.cli.process import run

if __name__ == "__main__":
    raise SystemExit(run("minimagen.cli.main", "main.py"))
