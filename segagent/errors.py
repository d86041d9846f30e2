"""Every error a user can cause, one named class each. All are `ValueError`s with one sentence: what is wrong, what to do."""


class SegAgentError(ValueError):
    """Base of all errors that this package raises on purpose."""


class ImageError(SegAgentError):
    """A picture cannot be read or has a shape or type that is no picture's."""


class MaskError(SegAgentError):
    """A mask is of another size than its picture, or is not a mask."""


class ExpressionError(SegAgentError):
    """A referring expression is empty or far too long."""


class ActionError(SegAgentError):
    """An action is impossible in a state: a click outside the picture, an undo with nothing to undo."""


class GrammarError(SegAgentError):
    """A model's text is not of the grammar."""


class CheckpointError(SegAgentError):
    """A checkpoint, or a part of it, is missing, broken, or of a version that this package does not know."""


class SegmenterError(SegAgentError):
    """A segmenter is unknown or cannot do what was asked of it."""


class DataError(SegAgentError):
    """A data set's file is missing, malformed or contradicts another."""


class MissingDependencyError(SegAgentError, ImportError):
    """An optional package is needed and absent; the message holds the install command."""
