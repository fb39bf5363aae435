"""Benchmarks of the kernels: on a GPU timed, on the emulated device counted, on both checked in the same run.

    for row in runner.rows(device("emulated", mode="fast", count=1), runner.select(["norm"])): print(row)

case.py      what a benchmark is: sizes, a call, its least traffic, a float64 formula for its results
families/    the benchmarks, one module per header of csrc/include/nn
timing.py    cold-L2 medians by events            peaks.py      what the device could do at best
counting.py  the emulator's counters              machine.py    registers, occupancy, loops of machine code
baselines.py cuBLAS and CuPy, where installed     runner.py     from a selection to rows"""
