"""Train a small cascade and draw with it: ``python main.py``, a few minutes on two cores."""

from minimagen.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
