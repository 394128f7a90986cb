"""Everything that says pass, hold or fail: expectation suites, thresholds, verdicts, drift."""
