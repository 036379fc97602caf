"""Errors of the simulator: refusals (HTTP answers), cut connections, invalid scenarios and control requests."""


class SimulatorError(Exception):
    """Base of all errors of the simulator."""


class Refusal(SimulatorError):
    """Asterisk refuses a request; becomes an HTTP answer with `{"message": ...}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Cut(SimulatorError):
    """The connection is cut without an answer: by a fault, or because Asterisk died while it served the request."""


class ScenarioError(SimulatorError):
    """A scenario file cannot be read or is not valid."""


class ControlError(SimulatorError):
    """The simulator refused a control request, or did not answer."""
