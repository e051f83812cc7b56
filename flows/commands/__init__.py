"""The commands, a module a group: each parses, calls, shows. `flows.cli` puts them on the command line."""
