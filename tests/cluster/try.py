import sys,time,tempfile,shutil,os
from pathlib import Path
from tests.cluster.machines import Cluster, Hosts
from tests.cluster import sweeps
from tests.cluster.sweeps import *
from tests.faults.machine import tiny_model
place=Path(tempfile.mkdtemp(prefix="clu-",dir="/tmp"))
print(place, flush=True)
kind={"A":Cluster,"B":Hosts}[sys.argv[1]]
t=time.time()
model=tiny_model(place/"model")
with kind(place/"c",environment(place/"watch",0.5)).up("n1","n2") as c:
    print(time.time()-t, flush=True)
    s=ClusterSweep(place/"s",model,("resources.workers=2",),trials=2,cluster=c)
    s.start()
    try:
        if len(sys.argv)>2:
            f=s.working(2); print("working",f,time.time()-t,s.machines_of(f),flush=True)
            print(strike(s,2,lambda f: c.machines["n2"].kill(),"preempted",lambda: c.join("n2")),flush=True)
        s.finish()
        print(time.time()-t, flush=True)
        accounted(s)
        print("freed", freed(s))
    finally:
        print(s.log.read_text()); s.end()
print("ended",time.time()-t)
os.system("ip netns list; ip link | grep hso")
