"""The base of every record that travels between rooms."""

import hashlib
import json

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A small frozen value: safe to hash, to store as JSON and to hand from task to task."""

    # NaN and infinity are written as strings, so that what is read back from JSON is what was written.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings")

    def digest(self) -> str:
        """SHA-256 (hex) of the record's canonical JSON: equal content, equal digest."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
