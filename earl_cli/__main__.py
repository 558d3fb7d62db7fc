"""``python -m earl_cli`` is ``earl``."""

from earl_cli.app import main

if __name__ == "__main__":
    main()
