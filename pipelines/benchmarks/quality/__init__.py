"""How accurate sparse reading is where the right answer is known: `dankai bench quality`. Needs torch alone."""
