"""``python -m daxfs``: the same as the ``daxfs`` command."""

from daxfs.cli.main import main

if __name__ == "__main__":
    main()
