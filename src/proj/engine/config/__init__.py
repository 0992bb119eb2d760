"""Configuration: from a command line and YAML files to a model, data and a Trainer."""
