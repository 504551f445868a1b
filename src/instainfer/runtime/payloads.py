"""What a function is given and what it gives back: bytes with a content type to Python objects and back."""

from __future__ import annotations

import binascii
import json

TYPE_CHECKING = False  # `typing` is not worth its import time in every instance
if TYPE_CHECKING:
    from collections.abc import Callable

    Encode = Callable[[object, int], tuple[str, bytes]]

JSON = "application/json"
BYTES = "application/octet-stream"
EVENTS = "text/event-stream"
TENSORS = "application/vnd.instainfer.tensors"  # tensors.py


class BadPayload(Exception):
    """The request's fault: its body is not what its content type says."""


class BadAnswer(Exception):
    """The function's fault: what it returned cannot be sent."""


def decode(content_type: str, body: bytes, params: dict) -> object:
    """The payload: a JSON object is merged over `params`, text is a str, all else stays bytes (a form too,
    which is what curl calls any --data-binary). Raises BadPayload."""
    kind = _kind(content_type, body)
    if kind == "json":
        return _json(body, params)
    return _text(body, content_type) if kind == "text" else body


def decode_line(content_type: str, body: bytes, params: dict) -> str:
    """The payload as one line for a script: JSON made compact, one line of UTF-8 text as it is, all else as
    `{"body_base64": …}`. A body of another type is taken for JSON where it is. Raises BadPayload."""
    kind = _kind(content_type, body)
    if kind == "json":
        return dumps(_json(body, params))
    if kind == "text":
        text = _text(body, content_type)
    else:
        try:
            return dumps(_json(body, params)) if body else ""
        except BadPayload:
            pass  # it never claimed to be
        try:
            text = body.decode()
        except ValueError:
            return _base64(body)
    line = text.rstrip("\r\n")
    return _base64(text.encode("utf-8", "surrogatepass")) if "\n" in line or "\r" in line else line


def encode(value: object, limit: int) -> tuple[str, bytes]:
    """Content type and body of an answer: bytes as they are, anything else as JSON. Raises BadAnswer."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        kind, body = BYTES, bytes(value)
    else:
        kind, body = JSON, encode_json(value)
    if len(body) > limit:
        raise too_large(len(body), limit)
    return kind, body


def kind_of_part(value: object) -> str:
    """Content type of a stream, by its first part: bytes and text as they are, all else as server-sent events."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return BYTES
    return "text/plain; charset=utf-8" if isinstance(value, str) else EVENTS


def encode_part(kind: str, value: object) -> bytes:
    """One part of a stream. Raises BadAnswer."""
    if kind == EVENTS:
        return b"data: " + encode_json(value) + b"\n\n"
    if kind == BYTES:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise BadAnswer("a stream that began with bytes goes on with a %s" % type(value).__name__)
        return bytes(value)
    if not isinstance(value, str):
        raise BadAnswer("a stream that began with text goes on with a %s" % type(value).__name__)
    return value.encode("utf-8", "backslashreplace")


def too_large(size: int, limit: int) -> BadAnswer:
    return BadAnswer("answer of %d bytes is over the limit of %d" % (size, limit))


def is_json(line: str) -> bool:
    try:
        loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _kind(content_type: str, body: bytes) -> str:
    if content_type == JSON:
        return "json"
    essence = content_type.partition(";")[0].strip().lower()
    if essence == JSON or essence.endswith("+json") or not (essence or body):
        return "json"
    return "text" if essence == "text/plain" else "bytes"


def _json(body: bytes, params: dict) -> object:
    if not body:
        return dict(params)
    try:
        payload = loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise BadPayload("the body is not valid JSON: %s" % error) from None
    if params and isinstance(payload, dict):
        return {**params, **payload}
    return payload


def _text(body: bytes, content_type: str) -> str:
    charset = "utf-8"
    for parameter in content_type.split(";")[1:]:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset":
            charset = value.strip().strip("\"'")
    try:
        return body.decode(charset)
    except LookupError:
        raise BadPayload("the charset %r is unknown" % charset) from None
    except ValueError as error:
        raise BadPayload("the body is not text in %s: %s" % (charset, error)) from None


def _base64(body: bytes) -> str:
    return dumps({"body_base64": binascii.b2a_base64(body, newline=False).decode()})


def encode_json(value: object) -> bytes:
    try:
        return dumps(value).encode()
    except RecursionError:
        raise BadAnswer("the answer is nested too deep for JSON") from None
    except ValueError as error:
        if "not JSON compliant" in str(error):
            raise BadAnswer(
                "the answer holds NaN or Infinity, which JSON cannot carry; return None (or a string) instead"
            ) from None
        raise BadAnswer("the answer cannot be written as JSON: %s" % error) from None
    except TypeError as error:
        raise BadAnswer(str(error)) from None


def _plain(value: object) -> object:
    """What the JSON encoder asks about a type that it does not know."""
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None and not isinstance(value, type):
        return {name: getattr(value, name) for name in fields}
    if isinstance(value, (set, frozenset)):
        return list(value)
    for name in ("tolist", "item"):  # arrays, tensors and their scalars
        convert = getattr(value, name, None)
        if callable(convert):
            plain = convert()
            if type(plain) is not type(value):  # else the encoder would ask again for ever
                return plain
    kind = type(value)
    raise TypeError(
        "the answer holds a %s.%s, which cannot be written as JSON; return numbers, strings, lists and dicts, "
        "or bytes" % (kind.__module__, kind.__qualname__)
    )


def _no_constant(name: str) -> object:
    raise ValueError("%s is not JSON" % name)


loads = json.JSONDecoder(parse_constant=_no_constant).decode
dumps = json.JSONEncoder(allow_nan=False, default=_plain, separators=(",", ":"), ensure_ascii=False).encode
