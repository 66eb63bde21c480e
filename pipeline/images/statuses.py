"""The statuses of manifest rows."""

OK = "ok"
FETCH_ERROR = "fetch_error"
DECODE_ERROR = "decode_error"
REJECTED_SIZE = "rejected_size"
NONFINITE = "nonfinite"
REJECTED_QUALITY = "rejected_quality"
WRITE_ERROR = "write_error"

STATUSES = frozenset((OK, FETCH_ERROR, DECODE_ERROR, REJECTED_SIZE, NONFINITE, REJECTED_QUALITY, WRITE_ERROR))

HANDLED = (OK, REJECTED_QUALITY)
"""The statuses of images with which nothing is wrong. The user's gates say whether an edit is good enough."""
