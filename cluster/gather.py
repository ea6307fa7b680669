"""Wait until so many machines are in the Ray cluster: a sweep runs as many trials at a time as it finds room for."""

import sys
import time

import ray

wanted = int(sys.argv[1])
ray.init(address="auto", log_to_driver=False)
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
    print(f"{there} of {wanted} machines are there", flush=True)
    time.sleep(10)
