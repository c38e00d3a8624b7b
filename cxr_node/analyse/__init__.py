"""From a prepared radiograph to findings: pure functions of arrays and networks."""
