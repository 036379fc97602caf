"""What the simulator raises: refusals (HTTP answers), cut connections, mistakes in a scenario or an order."""


class SimulatorError(Exception):
    """Root of all errors of the simulator."""


class Refusal(SimulatorError):
    """A request that Asterisk refuses; becomes an HTTP answer with `{"message": ...}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Cut(SimulatorError):
    """The connection is cut without an answer: Asterisk died while it served this request, or a fault says so."""


class ScenarioError(SimulatorError):
    """A scenario file that cannot be read or does not say what it should."""


class ControlError(SimulatorError):
    """The simulator refused an order of the control client, or did not answer."""
