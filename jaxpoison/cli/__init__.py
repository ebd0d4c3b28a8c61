"""The command line."""

from jaxpoison.cli.commands import main as main
