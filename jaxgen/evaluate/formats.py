"""Values of configs and of evaluation.json as people write them."""

import base64
import html
import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard


def figure(values: Mapping[str, Any], name: str) -> str:
    """A value with its standard error, if any; shares and accuracies in percent."""
    if not re.search("_(shares?|accuracy)$", name):
        return with_error(values, name) or plain(values[name])
    hundredfold = {n: _percent(values.get(n)) for n in (name, f"{name}_se")}
    return f"{with_error(hundredfold, name) or plain(hundredfold[name])} %"


def _percent(value: Any) -> Any:
    if isinstance(value, list):
        return [f"{100 * v:.1f}" if is_number(v) else v for v in value]
    return 100 * value if is_number(value) else value


def with_error(values: Mapping[str, Any], name: str) -> str | None:
    """`72.41 ± 0.61`, two digits of the standard error; None without either."""
    value, error = values.get(name), values.get(f"{name}_se")
    if not (is_number(value) and is_number(error) and error > 0):
        return None
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def plain(value: Any) -> str:
    """A value of a config or a JSON file, as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(v)}" for name, v in value.items())
    if isinstance(value, list | tuple):
        if len(value) > 1 and all(type(v) is str and v == value[0] for v in value):
            return f"{len(value)} × {value[0]}"
        return ", ".join(map(plain, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and no bool."""
    return type(value) in (int, float) and math.isfinite(value)


def short(value: float) -> str:
    """Four digits, more above 1000."""
    return f"{value:#.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def text(value: Any) -> str:
    """Escaped for a page, with what is not Unicode in a file name spelt out."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())


def uri(kind: str, content: bytes) -> str:
    """An image as a link that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
