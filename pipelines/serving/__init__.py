"""Real requests during the pilot: the incumbent answers, the candidate in shadow and then step by step."""
