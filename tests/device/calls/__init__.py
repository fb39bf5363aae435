"""One call of every function of the C ABI that launches kernels: the table behind test_repeatable.py,
test_capture.py, test_counts.py and test_arguments.py.  A new function is one entry.

    call = make(device, "rms_norm_forward", "bfloat16", rows=3, cols=40)
    y, rstd = call.run()                                     # its outputs, on the host"""

from tests.device.calls import arrays, attention, layers, training
from tests.device.calls.made import BUILDERS, VARIANTS, Call, cases, launching, make

TABLES = arrays, attention, layers, training                 # whose import fills the table

__all__ = ["BUILDERS", "TABLES", "VARIANTS", "Call", "cases", "launching", "make"]
