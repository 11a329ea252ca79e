"""Train a cascade: ``python train.py --help``."""

from minimagen.cli.process import run

if __name__ == "__main__":
    raise SystemExit(run("minimagen.cli.train", "train.py"))
