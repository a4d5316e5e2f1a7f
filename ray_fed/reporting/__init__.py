"""What a run leaves behind: a directory with configuration, history, model, events, figures and one readable report."""
