"""`dankai completion`: the shell completes commands, options and files."""

import click

_LINES = {
    "bash": 'eval "$(dankai completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$(dankai completion zsh)"  # in ~/.zshrc, after compinit',
    "fish": "dankai completion fish > ~/.config/fish/completions/dankai.fish",
}


@click.command(
    short_help="Lines that make your shell complete commands and files.",
    epilog="\b\nOnce, for every new shell:\n" + "\n".join(f"  {line}" for line in _LINES.values()),
)
@click.argument("shell", type=click.Choice(list(_LINES)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the lines that make SHELL complete dankai's commands, options, files and datasets.

    \b
    Example:
      eval "$(dankai completion bash)"
    """
    from click.shell_completion import get_completion_class

    known = get_completion_class(shell)
    assert known is not None
    click.echo(known(context.find_root().command, {}, "dankai", "_DANKAI_COMPLETE").source())
