"""`python -m launcher` is `longreel`."""

from launcher.cli.app import main

if __name__ == "__main__":
    main()
