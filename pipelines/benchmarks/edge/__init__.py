"""What the edge runtime costs on this processor, against the fastest dense reading that can be had on it."""
