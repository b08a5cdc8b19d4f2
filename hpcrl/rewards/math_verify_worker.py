"""The process in which math-verify compares answers; started by math_verify.py, ended by it when it takes too long.

A line of JSON comes in, {"gold", "response"}, and one goes out, {"outcome"}; {"outcome": "ready"} is the first.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys


def _outcome(gold: str, response: str) -> str:
    from math_verify import parse, verify

    # A bare gold answer is read as an expression only in a box: without one, 2\sqrt{2} would be 2.
    marked = gold if "\\boxed" in gold or "$" in gold else f"\\boxed{{{gold}}}"
    # Time limits are the caller's: those of math-verify are alarms, which a computation can outlast.
    expected = parse(marked, parsing_timeout=None)
    if not expected:
        return "bad_gold"
    found = parse(response, parsing_timeout=None)
    if not found:
        return "no_answer"
    return "right" if verify(expected, found, timeout_seconds=None) else "wrong"


def main() -> None:
    """Answers lines until standard input ends."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # What a package prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    if _outcome("1", "1") != "right":
        raise RuntimeError("math-verify does not find 1 equal to 1")
    answers.write(json.dumps({"outcome": "ready"}) + "\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            outcome = _outcome(request["gold"], request["response"])
        except (MemoryError, RecursionError):
            outcome = "too_large"
        except Exception:
            # math-verify says of itself that it does not raise; what it cannot read is not right.
            outcome = "wrong"
        answers.write(json.dumps({"outcome": outcome}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
