"""The commands of `edgebench`, one file each."""
