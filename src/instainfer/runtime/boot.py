"""Where a process inside a container begins: `python <here>/boot.py ROLE FD`.

Started by path, so that nothing need be installed on the function's own Python. The runtime's modules become
importable under a private package name only: a tenant's `frames.py` or `styles.py` never meets them.
"""

import importlib
import os
import sys

PACKAGE = "_instainfer_runtime"


def begin(role: str, fd: int) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    # A bare module with a __path__ is all that an import of a submodule needs: importlib.util would cost
    # every start more than the runtime itself.
    package = type(sys)(PACKAGE)
    package.__path__ = [here]
    sys.modules[PACKAGE] = package
    importlib.import_module(PACKAGE + "." + role).main(fd)


if __name__ == "__main__":
    begin(sys.argv[1], int(sys.argv[2]))
