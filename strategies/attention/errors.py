"""The error of this package, which is tracepaper's own where it is a part of tracepaper."""

__all__ = ["AttentionInvalid"]

try:
    from ..errors import AttentionInvalid  # pyright: ignore[reportAssignmentType]
except ImportError:  # the package is installed alone

    class AttentionInvalid(ValueError):  # type: ignore[no-redef]
        """A tensor, mask or backend that attention does not support."""
