"""Runs img2dataset, by an interpreter that has it, for `benchmarks.download`; needs nothing else.

    PYTHON benchmarks/run_img2dataset.py '{"url_list": "urls.txt", ...}'

Prints the seconds of the download and the processor seconds of this process and its children as JSON.
"""

import json
import os
import resource
import sys
import time


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Download with the settings of the command line."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import img2dataset  # type: ignore[import-not-found, unused-ignore]

    began, used = time.perf_counter(), cpu_seconds()
    img2dataset.download(**json.loads(sys.argv[1]))
    figures = {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - used}
    print(json.dumps(figures))


if __name__ == "__main__":  # its worker processes import this file again
    main()
