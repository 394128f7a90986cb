"""`dankai init`: a dataset file for a table that nobody described, by looking at it and asking little."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.options import json_option

if TYPE_CHECKING:
    from pipelines.data.looking import Answers, Look, Unclear

MOST_QUESTIONS = 5
_SORT = {"yes": True, "no": False}


@click.command(short_help="A dataset file for your own table; asks five questions at most.")
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Dataset file to write. Default: NAME.yaml here."
)
@click.option("--encoding", metavar="NAME", help="Of a text file: utf-8, cp932, euc_jp, utf-16, cp1252 ...")
@click.option(
    "--dates", type=click.Choice(["day", "month", "year"]), help="What a date such as 03/04/05 begins with."
)
@click.option("--time", metavar="COLUMN", help='A row\'s instant; "DATE + CLOCK" for two columns.')
@click.option(
    "--step", metavar="SPAN", help="Time between rows (10s, 5min, 1h) where no column holds instants."
)
@click.option("--entity", metavar="COLUMN", help="Whose row it is: a machine, a site; none for one series.")
@click.option("--sort/--no-sort", default=None, help="Sort each series by time as it is read, or refuse to.")
@click.option("--task", type=click.Choice(["event", "forecast", "detect"]), help="What kind of prediction.")
@click.option("--target", metavar="COLUMN", multiple=True, help="What to predict; may be repeated.")
@click.option("--lookback", type=click.IntRange(32), help="Rows that the model looks back.")
@click.option("--horizon", type=click.IntRange(1), help="Rows ahead that are predicted.")
@click.option("--force", is_flag=True, help="Replace a dataset file that is there.")
@json_option
def init(table: Path, out: Path | None, force: bool, as_json: bool, **given: Any) -> None:
    """Look at TABLE (a CSV, TSV or Parquet file, or a folder of them) and write a dataset file for it.

    What was seen is said. Where two answers are possible you are asked, five times at most; without a
    terminal the first question ends the command with status 2 and names the option that answers it. The file
    is written only when a rollout can start with it.

    \b
    Examples:
      dankai init sensors.csv
      dankai init plant.csv --encoding cp932 --dates day --entity line --target temperature
      dankai init machines/ --step 1min --out machines.yaml
    """
    from pipelines.data.looking import Answers

    look, content = _answered(table, Answers(**given), _ask if _is_attended() else _refuse)
    path = out or Path(f"{content['name']}.yaml")
    _check(path, content, force)
    _write(path, look, content)
    if as_json:
        import json

        click.echo(json.dumps({"file": str(path), "seen": look.said, "dataset": content}, indent=1))
        return
    _say(look, path)


def _is_attended() -> bool:
    import sys

    return sys.stdin.isatty() and sys.stderr.isatty()


def _answered(
    table: Path, answers: "Answers", ask: "Callable[[Unclear], str]"
) -> "tuple[Look, dict[str, Any]]":
    """Look, propose, and ask for what is unclear until nothing is."""
    from pipelines.data.looking import Unclear, look_at
    from pipelines.data.proposal import propose

    asked = 0
    while True:
        try:
            look = look_at(table, answers)
            return look, {**propose(look, answers), "source": _source(look)}
        except Unclear as question:
            asked += 1
            answer = ask(question) if asked <= MOST_QUESTIONS else _refuse(question)
            answers = answers.model_copy(update={question.about: _typed(question.about, answer)})


def _typed(about: str, answer: str) -> Any:
    return {"sort": _SORT.get(answer), "target": (answer,)}.get(about, answer)


def _ask(question: "Unclear") -> str:
    from pipelines.escaping import printable

    choices = click.Choice(question.choices) if question.choices else None
    shown = printable(f"{question.place.name}: {question.question}")
    return click.prompt(shown, type=choices, err=True)


def _refuse(question: "Unclear") -> str:
    raise question


def _source(look: "Look") -> dict[str, Any]:
    kind = look.source.pop("kind")
    path = str(look.place.resolve())
    return {"kind": kind, "path": path, **look.source}


def _check(path: Path, content: dict[str, Any], force: bool) -> None:
    """Raises InputError where the file is in the way or a rollout could not start with it."""
    from tempfile import TemporaryDirectory

    from pipelines.data.spec import load_spec
    from pipelines.preparation import refuse_unusable
    from pipelines.settings import load_settings
    from validation.errors import InputError

    if path.exists() and not force:
        raise InputError(f"{path}: is there already; name another with --out, or replace it with --force")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.absolute().parent}; make it first")
    with TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        draft.write_text(_yaml(content))
        refuse_unusable(load_spec(draft), load_settings())


def _write(path: Path, look: "Look", content: dict[str, Any]) -> None:
    from pipelines.clock import now
    from pipelines.escaping import printable
    from pipelines.files import replace_file

    seen = "".join(f"#   {printable(line)}\n" for line in look.said)
    head = (
        f"# Written by `dankai init` on {now()[:10]}; it saw\n{seen}# Every field: pipelines/data/spec.py\n"
    )
    replace_file(path, (head + _yaml(content)).encode())


def _yaml(content: dict[str, Any]) -> str:
    """Lists in one line, as in infra/datasets."""
    import json

    import yaml

    plain = json.loads(json.dumps(content, ensure_ascii=False))  # tuples become lists
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _say(look: "Look", path: Path) -> None:
    from pipelines.escaping import printable

    for line in look.said:
        click.echo(printable(line))
    click.echo(f"\nwrote {path}; look it over, then:")
    click.echo(f'dankai rollout run {path} --bootstrap "why the first model may go live"')
