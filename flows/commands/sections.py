"""The help of `dankai`: commands under headings, so that a stranger finds the way, and the exit statuses."""

from collections.abc import Mapping, Sequence

import click

EXIT_STATUS = """\b
Exit status:
  0    the job was done, whatever the verdicts
  1    a fault of dankai itself; the traceback is what to report
  2    something given, or the environment, cannot be used: one line says what, where, and the fix
  130  stopped by Ctrl-C; the same command goes on from there

\b
On a terminal there are colours and progress bars, elsewhere plain lines; NO_COLOR=1 leaves colours out,
--quiet the progress. --json is for programs. Settings: infra/settings.example.env."""


class Sections(click.Group):
    """A group whose help lists its commands under headings, in the order in which they were added."""

    def __init__(self, **attributes: object) -> None:
        super().__init__(**attributes)  # type: ignore[arg-type]  # click's own arguments
        self._headings: dict[str, list[str]] = {}

    def add_sections(self, sections: Mapping[str, Sequence[click.Command]]) -> None:
        """Add every command below its heading."""
        for heading, commands in sections.items():
            for command in commands:
                self.add_command(command)
                self._headings.setdefault(heading, []).append(str(command.name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands that were added without a heading come last."""
        placed = {name for names in self._headings.values() for name in names}
        others = [name for name in self.list_commands(ctx) if name not in placed]
        for heading, names in {**self._headings, "More": others}.items():
            rows = [(name, self._said(ctx, name)) for name in names]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def _said(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        return command.get_short_help_str(limit=64) if command else ""
