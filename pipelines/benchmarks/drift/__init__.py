"""The drift detector as a smoke alarm: how often it cries without a fire, and how soon it cries at one."""
