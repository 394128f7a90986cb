"""What a gate looked at, kept, so that an approved candidate can be judged again on the data as it is then.

A case lies beside the models it names, as signed JSON named after the verdict that asked for the approval. It
holds that verdict, whose digest the release log has: the models have to be those that were judged.
"""

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from pipelines.checkpoint import Checkpoint
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.edge.bundle import Bundle
from pipelines.files import replace_file
from pipelines.job import Job, Prepared, dataset_folder
from pipelines.judging import (
    edge_kpis,
    judge_stage,
    measure_costs,
    measure_edge,
    pilot_kpis,
    score,
    score_baselines,
    score_champion,
    score_on_edge,
    steady_kpis,
    training_kpis,
)
from pipelines.preparation import known_data
from pipelines.scoring import Scores
from pipelines.settings import Settings
from pipelines.signing import is_signed, load_key, sign, trusted_keys
from validation.errors import InputError
from validation.gates import Verdict
from validation.kpis import Kpi, Reference
from validation.policy import Policy
from validation.record import Record

PURPOSE = "approval case"


class Lineup(Record):
    """A candidate, and everything that its gate compared it with or measured of it."""

    candidate: Checkpoint
    dense: Checkpoint | None = None
    champion: Checkpoint | None = None
    seeds: tuple[Checkpoint, ...] = ()
    """The candidate's training and the same with other seeds."""
    bundle: Bundle | None = None
    """Set where the candidate answers in the edge runtime."""

    def folders(self) -> list[Path]:
        """Where the models lie."""
        models = (self.candidate, self.dense, self.champion, *self.seeds, self.bundle)
        return [Path(model.folder) for model in models if model is not None]


class Case(Record):
    """A request for approval as its gate saw it."""

    dataset_file: str
    dataset_digest: str
    preprocessing: str
    """Digest of the statistics fitted on the training part, which must not have changed since."""
    policy: Policy
    verdict: Verdict
    lineup: Lineup
    judged_as: DatasetSpec | None = None
    """The dataset as a retraining split it; None where it is as its file says."""

    def spec(self) -> DatasetSpec:
        """The dataset. Raises InputError where its file is gone or was changed since it was judged."""
        spec = load_spec(Path(self.dataset_file))
        if _digest(spec) != self.dataset_digest:
            raise InputError(
                f"{self.dataset_file}: changed since the request was made; run the rollout again"
            )
        return self.judged_as or spec


class SignedCase(Record):
    """A case as it lies on disk. The signature is over the case's digest."""

    case: Case
    signature: str


def keep_case(job: Job, lineup: Lineup, verdict: Verdict) -> None:
    """Write down what a request is about, before it is made."""
    of_file = load_spec(Path(job.spec.file))
    case = Case(
        dataset_file=str(Path(job.spec.file).resolve()),
        dataset_digest=_digest(of_file),
        judged_as=None if _digest(of_file) == _digest(job.spec) else job.spec,
        preprocessing=known_data(replace(job, spec=of_file)).preprocessing.digest(),
        policy=job.policy,
        verdict=verdict,
        lineup=lineup,
    )
    signature = sign(load_key(job.settings.keys), PURPOSE, case.digest().encode())
    path = _path(job.settings, job.spec.name, verdict.digest())
    signed = SignedCase(case=case, signature=signature)
    replace_file(path, signed.model_dump_json(indent=1).encode() + b"\n")


def read_case(settings: Settings, dataset: str, verdict: str) -> Case:
    """The case of a verdict's digest.

    Raises InputError where it is not on this machine, is not the one that was signed for this verdict, or
    leads outside the store.
    """
    path = _path(settings, dataset, verdict)
    try:
        signed = SignedCase.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        where = "the request was made from another DANKAI_HOME; approve it there"
        raise InputError(f"{path}: what was judged is not here: {where}") from None
    except ValidationError:
        raise InputError(f"{path}: damaged; run the rollout again, which writes it anew") from None
    if fault := _fault(signed, settings, verdict):
        raise InputError(f"{path}: {fault}; run the rollout again, which writes it anew")
    return signed.case


def _fault(signed: SignedCase, settings: Settings, verdict: str) -> str:
    """Why a case cannot be believed, or ''."""
    case = signed.case
    if not is_signed(trusted_keys(settings.keys), PURPOSE, case.digest().encode(), signed.signature):
        return "it was edited: its signature does not hold"
    if case.verdict.digest() != verdict:
        return "it belongs to another verdict"
    judged = case.verdict.evidence.references
    present: dict[Reference, Checkpoint | None] = {
        "dense": case.lineup.dense,
        "champion": case.lineup.champion,
    }
    for name, model in present.items():
        if (model.sha256 if model else None) != judged.get(name):
            return f"its {name} model is not the one that was judged"
    home = settings.home.resolve()
    outside = [each for each in case.lineup.folders() if not each.resolve().is_relative_to(home)]
    return f"{outside[0]} lies outside {home}" if outside else ""


def look_again(job: Job, case: Case) -> Verdict:
    """Judge the same weights on the newest part of the data as its source holds it now.

    The newest part is the last month of the replay, or the test part where there is none. Raises InputError
    where the data's past was rewritten: the statistics the models were trained with would not hold any more.
    """
    of_file = replace(job, spec=load_spec(Path(case.dataset_file)))
    prepared, lineup = known_data(of_file), case.lineup
    if prepared.preprocessing.digest() != case.preprocessing:
        raise InputError(
            f"{case.dataset_file}: the training part of the data changed since; run the rollout again"
        )
    part = job.windows(prepared).part_names[-1]
    candidate, measured = _measured(job, prepared, case, part)
    references = _references(job, prepared, lineup, part)
    stage = case.verdict.stage
    return judge_stage(job, prepared, stage, candidate, references, measured, is_confirmation=True).verdict


def _measured(job: Job, prepared: Prepared, case: Case, part: str) -> tuple[Scores, list[Kpi]]:
    """The candidate's scores of the part, and what its stage measures beside them."""
    lineup, density = case.lineup, job.plan.target_density
    if lineup.bundle is not None:
        answers = score_on_edge(job, prepared, lineup.bundle, part)
        timings = measure_edge(job, lineup.bundle)
        return answers, edge_kpis(prepared, lineup.bundle, timings, job.policy.confidence)
    scores = score(job, prepared, lineup.candidate, part, density, "candidate")
    if lineup.dense is None:
        return scores, steady_kpis(job, prepared, lineup.candidate, part)
    costs = measure_costs(job, lineup.candidate, lineup.dense, (1,))
    if not lineup.seeds:
        return scores, pilot_kpis(job, prepared, lineup.candidate, costs, part)
    seeds = [score(job, prepared, each, part, density, f"sparse-seed{each.seed}") for each in lineup.seeds]
    return scores, training_kpis(job, prepared, lineup.candidate, costs, seeds, part)


def _references(job: Job, prepared: Prepared, lineup: Lineup, part: str) -> dict[Reference, Scores]:
    baselines = {scores.part: scores for scores in score_baselines(job, prepared)}
    references: dict[Reference, Scores] = {"baseline": baselines[part]}
    if lineup.dense is not None:
        references["dense"] = score(job, prepared, lineup.dense, part, None, "dense")
    if lineup.champion is not None:
        references["champion"] = score_champion(job, prepared, lineup.champion, part)
    return references


def _digest(spec: DatasetSpec) -> str:
    """Of what the file says, wherever it lies."""
    return spec.model_copy(update={"file": ""}).digest()


def _path(settings: Settings, dataset: str, verdict: str) -> Path:
    return dataset_folder(settings, dataset) / "cases" / f"{verdict[:16]}.json"
