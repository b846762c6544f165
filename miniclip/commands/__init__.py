"""The commands of `miniclip`, a file for each group; cli.py puts them together."""
