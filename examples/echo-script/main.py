"""The script style: load, then answer one line with one line, until the input ends."""

import json
import sys

TABLE = str.maketrans("abcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyzabcdefghijklm")  # what a model would be

while line := sys.stdin.readline():
    event = json.loads(line)
    text = str(event.get("text", ""))
    print(json.dumps({"echo": text, "rot13": text.lower().translate(TABLE)}), flush=True)
