"""The subcommands of `edgelm`, one file each."""
