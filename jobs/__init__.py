"""Jobs: the command line, training, evaluation, staged recipes and their tracking."""
