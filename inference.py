"""Draw captions with a trained cascade: ``python inference.py --help``."""

from minimagen.cli.process import run

if __name__ == "__main__":
    raise SystemExit(run("minimagen.cli.inference", "inference.py"))
