"""``python -m minimagen``: the same as the command ``minimagen``."""

from minimagen.cli.command import main

if __name__ == "__main__":
    raise SystemExit(main())
