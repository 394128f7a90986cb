"""A fresh process that loads a model as its server will, and answers golden requests (see serving_check).

Arguments: the saved model's folder, an .npz of requests, where to write the .npz of answers, threads. Request
i is three arrays named i.numeric, i.known, i.categorical; its answer is named i and is absent where the model
raised. Prints {"load_ms": ..., "latency_ms": [...], "failure": "..."}.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Load, answer every request once, report."""
    folder, requests, answers, threads = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    import torch

    from pipelines.servable import load_model

    torch.set_num_threads(threads)
    started = time.perf_counter()
    predict = load_model(folder).predict
    load_ms = (time.perf_counter() - started) * 1e3
    with np.load(requests, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    answered, latency_ms, failure = {}, [], ""
    for index in range(len(arrays) // 3):
        request = {name: arrays[f"{index}.{name}"] for name in ("numeric", "known", "categorical")}
        started = time.perf_counter()
        try:
            answered[str(index)] = np.asarray(predict(request))
        except Exception as error:  # whatever a model does, its caller wants to know how often
            failure = f"{type(error).__name__}: {error}"
        latency_ms.append((time.perf_counter() - started) * 1e3)
    np.savez(answers, **answered)
    print(json.dumps({"load_ms": load_ms, "latency_ms": latency_ms, "failure": failure}))


if __name__ == "__main__":
    main()
