"""Errors that a user can mend.

Every message says what is wrong, where, and what to do about it. The command line prints them without a traceback.
"""


class UserError(Exception):
    """Wrong input, configuration or state that the user can put right.

    The first sentence names the thing (key, value, file); the second names the fix (flag, command, accepted values).
    """


class ImageError(UserError):
    """An image that cannot be used.

    Attributes:
        reason: one of ``IMAGE_REASONS``; prepared data sets store it with the reject row.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


IMAGE_REASONS = ("image_missing", "image_unreadable", "image_too_large", "image_aspect_ratio")
