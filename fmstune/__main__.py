"""`python -m fmstune`, the same as the command `fmstune`."""

from fmstune.cli.main import main

if __name__ == "__main__":
    main()
