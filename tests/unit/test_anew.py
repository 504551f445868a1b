from __future__ import annotations

from instainfer.anew import arguments


def test_the_line_of_a_process_that_begins_anew_does_not_grow() -> None:
    line = ["python", "-m", "instainfer.cli", "agent", "--listen", "127.0.0.1:0", "--node", "a"]
    once = arguments(line, ("--listen", "127.0.0.1:5"))
    assert once == [*line, "--listen", "127.0.0.1:5"]
    assert arguments(once, ("--listen", "127.0.0.1:6")) == [*line, "--listen", "127.0.0.1:6"]
    assert arguments(line, ()) == line
