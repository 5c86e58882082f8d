"""Which requests are chosen, where a share of them is."""

import hashlib


def chosen(request_id: str, share: float) -> bool:
    """Whether a request is one of the chosen.

    The id alone decides: the same request is chosen by all who choose that share, and again when it is repeated.

    Args:
        request_id: of the request.
        share: which part of all requests is, 0 to 1.
    """
    number = int.from_bytes(hashlib.sha256(request_id.encode("utf-8", "replace")).digest()[:8])
    return number < share * 2**64
