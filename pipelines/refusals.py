"""Explains failed requests to Kubeflow's API, of the server or of the network, in one line with the remedy."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from llm_retriever.errors import InputError

_PASSING = (429, 502, 503, 504)
_CAUSE = re.compile(r"(?:InternalServerError|InvalidInputError|Invalid input error): *(.*)", re.DOTALL)


class UnreachableError(InputError):
    """The server cannot be reached, or is not ready; it may be in a moment."""


class UnknownError(InputError):
    """The server does not know the requested object."""


@contextlib.contextmanager
def explained_refusals(endpoint: str, *, subject: str = "", field: str = "", hint: str = "") -> Iterator[None]:
    """Turns what the client raises into one line; what the server said is shown, but no header of the request.

    Args:
        endpoint: As given on the command line.
        subject: What is asked for, as in "run 17"; it is said to be unknown when the server answers 404.
        field: The argument that names it.
        hint: What to do when it is unknown.

    Raises:
        UnreachableError: Nothing answers, or it answers that it cannot now.
        UnknownError: There is no such subject.
        InputError: The server refuses.
    """
    import kfp_server_api
    import urllib3

    where = endpoint or os.environ.get("KF_PIPELINES_ENDPOINT") or "KF_PIPELINES_ENDPOINT"
    try:
        yield
    except kfp_server_api.ApiException as error:
        if error.status == 404 and subject and _is_kubeflows(error):
            raise UnknownError(f"no such {subject}", field=field or None, hint=hint) from None
        raise _refusal(error, where) from None
    except (urllib3.exceptions.HTTPError, TimeoutError, OSError) as error:
        raise UnreachableError(
            f"no answer ({type(error).__name__})",
            file=where,
            field="--endpoint",
            hint="give the URL of the Pipelines API, for instance of kubectl port-forward svc/ml-pipeline 8888",
        ) from None


def _refusal(error: Any, where: str) -> InputError:
    reason = _reason(error)
    said = f"Kubeflow answers {error.status}: {reason}" if reason else f"Kubeflow answers {error.status}"
    if error.status in _PASSING or not error.status:
        return UnreachableError(
            said, file=where, hint="try again; kubectl -n kubeflow get pods shows whether ml-pipeline runs"
        )
    if error.status >= 500:
        return InputError(said, file=where, hint="the log of the deployment ml-pipeline tells more")
    if error.status == 401:
        return InputError(
            said, file=where, field="--token-file", hint="give a token that the server takes, a fresh one"
        )
    if error.status == 403:
        hint = "name a namespace in which you may do this, or give the token of an account that may"
        return InputError(said, file=where, field="--namespace", hint=hint)
    if error.status == 404 and not _is_kubeflows(error):
        hint = "give the URL of the Pipelines API, without /apis/…"
        return InputError("no Pipelines API answers here (404)", file=where, field="--endpoint", hint=hint)
    if error.status == 409:
        return InputError(said, file=where, field="--name", hint="take another name, or remove the old one")
    if "namespace" in reason.lower() and error.status == 400:
        return InputError(said, file=where, field="--namespace", hint="name the profile's namespace")
    return InputError(said, file=where)


def _answer(error: Any) -> dict[str, Any]:
    body = error.body or b""
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _is_kubeflows(error: Any) -> bool:
    """Whether a 404 is Kubeflow's about a thing, and not one of a path that nothing serves."""
    return "not found" in _reason(error) or "NotFoundError" in _reason(error)


def _reason(error: Any) -> str:
    """Cause, which Kubeflow's servers put last in a chain of what failed because of it."""
    answer = _answer(error)
    texts = [answer.get(key) for key in ("message", "error_message", "error")]
    text = next((text for text in texts if isinstance(text, str) and text), str(error.reason or ""))
    # The message of an internal error ends with the server's stack.
    lines = text.splitlines() or [""]
    cause = _CAUSE.search(lines[0])
    return (cause[1] if cause and cause[1] else lines[0]).strip()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the client's version warning, and sends its links where progress goes, so that ids can be piped on."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
