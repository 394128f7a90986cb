"""From a judged checkpoint to a signed bundle, and the small runtime that answers from it on a device."""
