"""The parts of a page, each a function of the story and the words."""
