"""Speed on this machine's processor: training, decoding, single operations and the start, each beside what
the machine could do at best and beside other libraries where they are installed.

    cuda-nn bench cpu | train | decode | startup

Every library is measured in a process of its own (worker.py), so that peak memory is its own and no two pools
of threads meet; the processes take turns, sample by sample (runs.py), so that a machine whose speed drifts
drifts for all.  So do the machine's limits (ceilings.py).  models.py has the models, report.py the rows."""
