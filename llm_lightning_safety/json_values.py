"""Values of a record that JSON has no type for."""

import base64
from typing import Any


def json_default(value: Any) -> Any:
    """For `json.dumps(default=...)`: dates and times as ISO 8601, bytes as the text that they are, else base64, arrays
    as lists, anything else (decimals with all of their digits) as its `str`.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return base64.b64encode(data).decode()
    for method in ("tolist", "isoformat"):
        if callable(convert := getattr(value, method, None)):
            return convert()
    return str(value)
