"""How often the gate errs, over every simulated case: `dankai gate simulate --calibration` runs it.

The results file carries the policy's confidence and looks, the machine, the versions and the date.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.clock import now
from pipelines.files import replace_file
from pipelines.fingerprint import Environment, environment
from validation.calibration import CASES, Rates, error_rates
from validation.policy import Policy
from validation.record import Record

RESULTS = Path(__file__).parent / "results" / "gates.json"


class Calibration(Record):
    """Rates of all cases, and what they were measured with."""

    rates: tuple[Rates, ...]
    confidence: float
    looks: tuple[float, ...]
    num_resamples: int
    date: str
    environment: Environment


def calibrate(
    policy: Policy, num_draws: int, num_resamples: int, report: Callable[[str, int, int], None]
) -> Calibration:
    """Simulate every case; minutes on one core."""

    def rates() -> Iterator[Rates]:
        for done, case in enumerate(CASES):
            report("simulating gates", done, len(CASES))
            yield error_rates(
                case,
                confidence=policy.confidence,
                looks=policy.looks,
                num_resamples=num_resamples,
                num_draws=num_draws,
            )
        report("simulating gates", len(CASES), len(CASES))

    return Calibration(
        rates=tuple(rates()),
        confidence=policy.confidence,
        looks=policy.looks,
        num_resamples=num_resamples,
        date=now(),
        environment=environment(),
    )


def write(calibration: Calibration, path: Path) -> None:
    """The results file, whole or not at all."""
    replace_file(path, calibration.model_dump_json(indent=1).encode() + b"\n")
