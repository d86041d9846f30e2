"""How a stage of training ends as a command: what a user can mend is told in one sentence, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from segagent.errors import SegAgentError


def as_command(main: Callable[[], object]) -> None:
    """Runs the command. Exit codes as those of `python -m segagent`: 2 bad usage or input, 130 interrupted."""
    try:
        main()
    except SegAgentError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on.", file=sys.stderr)
        raise SystemExit(130) from None
