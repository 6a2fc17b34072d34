"""``python -m tracepaper`` is the command ``tracepaper``."""

from tracepaper.daemon.cli import main

if __name__ == "__main__":
    main()
