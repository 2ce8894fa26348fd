"""Where the command begins, as `vglm` and as `python -m vglm`: Ctrl-C is quiet from here on, while it imports, too."""

INTERRUPTED = 130  # what a shell says of a program that SIGINT ended


def main() -> None:
    """The `vglm` command."""
    try:
        from vglm.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
