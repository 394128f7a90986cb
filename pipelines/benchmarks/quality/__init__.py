"""Accuracy of sparse reading where the right answer is known: `dankai bench quality`. Needs torch alone."""
