"""The `attnzoo` command, also reached as `python -m attnzoo`."""


def main() -> None:
    # The command line lives with the loops that it starts; importing it here keeps `import attnzoo` free of it.
    from attnzoo.train.cli import main as run

    run()


if __name__ == '__main__':
    main()
