"""Which requests are chosen, where a share of them is."""

import hashlib


def chosen(name: str, share: float) -> bool:
    """Whether a request is one of the chosen.

    The name alone decides: the same request is chosen by all who choose that share, and again when it is repeated.

    Args:
        name: by which the request is known.
        share: which part of all requests is, 0 to 1.
    """
    number = int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8])
    return number < share * 2**64
