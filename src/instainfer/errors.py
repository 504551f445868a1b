"""One error tree. Foreign errors are translated into it at the edge where they appear.

InstaInferError                         500  something of ours broke
├── BadInput                            400  what was sent cannot be used; the hint says what to send
│   ├── BadPackage                      400  a package that is unsafe or has no entry point
│   ├── BadSettings                     400  function.toml or instainfer.toml says something impossible
│   ├── WrongMethod                     405  not how this address is used
│   ├── Unsupported                     501  a part of somebody else's protocol that is not there
│   └── TooLarge                        413  a body or an answer over its limit
├── NotAllowed                          401  no key, or a wrong one
├── Forbidden                           403  a key of another namespace, or of too small a role
│   └── CrossSite                       403  a web page of another site asks a server that has no key
├── NotFound                            404  no such function, version, activation, container
├── Conflict                            409  cannot be done in the present state (pre-load finds no room)
├── FunctionFailed                      502  the function's own doing
│   ├── BuildFailed                     502  phase `build`: its environment cannot be built
│   ├── LoadFailed                      502  phases `import`, `load`, `warmup`
│   ├── InvocationFailed                502  phase `inference`: it raised
│   ├── InstanceCrashed                 502  its process died (native crash, out of memory, exit)
│   └── TimedOut                        504  it was killed at its time limit
├── Cancelled                           499  the caller went away before its turn came; kept in records only
├── OverQuota                           429  the namespace's own limit; carries retry_after_s where waiting helps
├── Overloaded                          503  queue full or no memory free; carries retry_after_s
├── Unavailable                         503  the platform is starting or stopping, or a sandbox cannot be made;
│   │                                         carries retry_after_s
│   ├── Stopping                        503  this server ends and has not begun it: another one may have it
│   └── NoServer                        503  a gateway's: it waited for a server that serves, or had no room to
└── Interrupted                         502  a gateway's: the server went away with it, and may have begun it
"""

from __future__ import annotations

from typing import Any, ClassVar


class InstaInferError(Exception):
    """Base of every error that reaches a user.

    `message` says what happened, `hint` what to do about it; `function` and `phase` name where. The HTTP
    body is RFC 9457 problem JSON made by `problem()`.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    again: ClassVar[bool] = False  # whoever sends it again, to whichever server, does not have it run twice
    #: Seconds after which it may be worth another try, where nobody knows better; None: it is not.
    again_s: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        function: str = "",
        phase: str = "",
        detail: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.function = function
        self.phase = phase
        self.detail = detail  # the child's traceback or the tool's output, cut to a readable length
        self.retry_after_s = self.again_s if retry_after_s is None else retry_after_s

    def problem(self) -> dict[str, Any]:
        """RFC 9457 members; extension members only where they say something."""
        body: dict[str, Any] = {
            "type": f"urn:instainfer:error:{self.code}",
            "title": self.code.replace("_", " "),
            "status": self.status,
            "detail": self.message,
        }
        for key in ("hint", "function", "phase"):
            if value := getattr(self, key):
                body[key] = value
        if self.detail:
            body["trace"] = self.detail
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        return body


class BadInput(InstaInferError):
    status = 400
    code = "bad_input"


class BadPackage(BadInput):
    code = "bad_package"


class BadSettings(BadInput):
    code = "bad_settings"


class WrongMethod(BadInput):
    status = 405
    code = "wrong_method"


class Unsupported(BadInput):
    status = 501
    code = "unsupported"


class TooLarge(BadInput):
    status = 413
    code = "too_large"


class NotAllowed(InstaInferError):
    status = 401
    code = "not_allowed"


class Forbidden(InstaInferError):
    status = 403
    code = "forbidden"


class CrossSite(Forbidden):
    code = "cross_site"


class NotFound(InstaInferError):
    status = 404
    code = "not_found"


class Conflict(InstaInferError):
    status = 409
    code = "conflict"


class FunctionFailed(InstaInferError):
    status = 502
    code = "function_failed"


class BuildFailed(FunctionFailed):
    code = "build_failed"


class LoadFailed(FunctionFailed):
    code = "load_failed"


class InvocationFailed(FunctionFailed):
    code = "invocation_failed"


class InstanceCrashed(FunctionFailed):
    code = "instance_crashed"


class TimedOut(FunctionFailed):
    status = 504
    code = "timed_out"


class Cancelled(InstaInferError):
    status = 499  # nginx's number for it: there is no standard one, and nobody is left to read it
    code = "cancelled"


class OverQuota(InstaInferError):
    status = 429
    code = "over_quota"


class Overloaded(InstaInferError):
    status = 503
    code = "overloaded"
    again_s = 1.0


class Unavailable(InstaInferError):
    status = 503
    code = "unavailable"
    again_s = 5.0


class Stopping(Unavailable):
    code = "stopping"
    again = True


class NoServer(Unavailable):
    code = "no_server"
    again = True


class Interrupted(InstaInferError):
    status = 502
    code = "interrupted"


def _tree(root: type[InstaInferError]) -> dict[str, type[InstaInferError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


#: code -> class, for errors that cross a process boundary as their problem JSON.
BY_CODE: dict[str, type[InstaInferError]] = _tree(InstaInferError)


def from_problem(problem: dict[str, Any]) -> InstaInferError:
    """The error whose `problem()` this is; an unknown type becomes the base class with its status lost."""
    code = str(problem.get("type", "")).rpartition(":")[2]
    return BY_CODE.get(code, InstaInferError)(
        str(problem.get("detail", problem.get("title", "unknown error"))),
        hint=str(problem.get("hint", "")),
        function=str(problem.get("function", "")),
        phase=str(problem.get("phase", "")),
        detail=str(problem.get("trace", "")),
        retry_after_s=problem.get("retry_after_s"),
    )
