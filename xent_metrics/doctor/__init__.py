"""What `xent doctor` looks for, as lists of `Finding`: in the installation, in task configurations, and in runs of lm-eval."""
