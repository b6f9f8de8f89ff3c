"""Where settings come from: the command line, the environment, shipped YAML files, short names."""
