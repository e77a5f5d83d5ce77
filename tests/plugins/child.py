"""Run commands of edgeopt in one process: `python child.py < commands.json > results.json`.

An element of the list is a command's words; the results are the exit code, what was printed, and
which of the modules that matter were loaded afterwards.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

WATCHED = ("torch", "edgeopt_sample", "broken_raises", "broken_fine", "twins")


def _run(words: list[str]) -> dict[str, object]:
    from edgeopt.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    loaded = sorted(set(WATCHED) & set(sys.modules))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "loaded": loaded}


if __name__ == "__main__":
    import edgeopt

    results = [_run(words) for words in json.load(sys.stdin)]
    print(json.dumps({"edgeopt": edgeopt.__file__, "results": results}))
