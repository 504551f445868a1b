"""One of the targets under atheris, which follows coverage (pip install atheris; no dependency of the tests):

    python -m tests.fuzz.with_atheris package -max_total_time=60

Arguments behind the target's name are libFuzzer's. Ends at the first input that is a bug, and keeps it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore] # wanted by hand only

    with atheris.instrument_imports(include=["instainfer", "zipfile", "json", "tomllib"]):
        from tests.fuzz.targets import TARGETS

    by_name = {target.__name__: target for target in TARGETS}
    if len(sys.argv) < 2 or sys.argv[1] not in by_name:
        sys.exit(f"one of {', '.join(by_name)}")
    target = by_name[sys.argv[1]]
    corpus = Path(tempfile.mkdtemp(prefix="instainfer-fuzz-"))
    for number, seed in enumerate(TARGETS[target]):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
