"""`python -m tokenspeed`, and the `tokenspeed` command."""

import signal

# Ctrl-C ends the process quietly while the libraries load and a model is read; a server that answers
# installs its own handler, which drains.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from tokenspeed.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
