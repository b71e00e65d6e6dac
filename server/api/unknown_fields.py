"""Fields that no part of the server reads: a misspelt one changes nothing in the answer, and looks as if it did."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel

from server.api.errors import RequestError
from server.config.traffic import UnknownFields
from server.errors import nearest

HEADER = "Warning"
MAX_NAMED, MAX_NAME = 8, 64


def warn_of_unknown_fields(request: BaseModel, policy: UnknownFields) -> Mapping[str, str]:
    """The header that names what is ignored, by RFC 7234's code 299; empty where nothing is, or nobody wants to know.

    Raises:
        RequestError: there are such fields, and they are refused here.
    """
    unknown = list(request.model_extra or ())
    if not unknown or policy == "ignore":
        return {}
    known = [name for field, info in type(request).model_fields.items() for name in (info.alias or field,)]
    sentences = []
    for name in unknown[:MAX_NAMED]:
        # JSON, as a header holds neither line ends nor letters beyond ASCII.
        shown = json.dumps(name[:MAX_NAME])[1:-1].replace("\\", "").replace('"', "'")
        close = nearest(name[:MAX_NAME], known)
        sentences.append((shown, f"; {close}" if close.startswith("did") else ""))
    if policy == "refuse":
        name, hint = unknown[0], sentences[0][1]
        raise RequestError(f"{name}: there is no such field{hint}", name)
    ignored = ", ".join(f"'{shown}' is ignored{hint}" for shown, hint in sentences)
    more = f", and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
    return {HEADER: f'299 logit-fusion "{ignored}{more}"'}
