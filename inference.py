"""Draw captions with a trained cascade: ``python inference.py --help``."""

from minimagen.cli.inference import main

if __name__ == "__main__":
    raise SystemExit(main())
