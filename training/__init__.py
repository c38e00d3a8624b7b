"""Training, evaluation and explanation of the networks: straight scripts over prepare, analyse and nets."""
