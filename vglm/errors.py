"""Errors that a user can cause or meet; each message says what was wrong, where, and what to do."""


class VGLMError(Exception):
    """Base of every error that vGLM raises on purpose."""


class ModelError(VGLMError):
    """A model file is missing, damaged, or of a kind that vGLM does not run."""


class RequestError(VGLMError, ValueError):
    """A prompt or a sampling parameter is refused; the engine's state is unchanged.

    `param` names the parameter that is at fault, where it is a single one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class GraphError(VGLMError, ValueError):
    """A graph is malformed; the message names the line and the field where it can."""


class UnknownGraphError(GraphError):
    """The store has no graph of this name, or the graph no such version or snapshot."""


class ConflictError(GraphError):
    """Something else is there already: a graph of this name, or a newer version than the writer expected.

    `current` is the version that is there, where a version is what conflicts.
    """

    def __init__(self, message: str, current: int | None = None) -> None:
        super().__init__(message)
        self.current = current


class StoreError(VGLMError):
    """The graph store cannot be opened, read or written: foreign, damaged, locked, or the disk is full."""


class ConfigError(VGLMError, ValueError):
    """An engine option is out of range or does not fit the model or the machine."""
