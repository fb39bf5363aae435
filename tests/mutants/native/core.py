"""csrc/native/core and what kernels share: loops, levels' arithmetic, memory, recordings, signatures."""

from tests.mutants.native.workshop import Mutant

LOOPS, THREADS, MEMORY, RECORD, SIGNATURE = (
    "kernels/kernel.h", "core/threads.cpp", "core/memory.cpp", "core/record.cpp", "core/signature.cpp")

MUTANTS = [
    Mutant(LOOPS, "a loop over registers forgets the ragged end",
           "if (i < count) body(i, count - i);\n}\n\n// The same",
           "}\n\n// The same", "softmax"),
    Mutant(LOOPS, "the last block of a sum runs past the end",
           "body(b, b * size, stop < count ? stop : count);",
           "body(b, b * size, stop);", "rms_norm_backward"),
    Mutant(LOOPS, "a row's sum loses its third chain", "(chain[2] + chain[3])",
           "(chain[3] + chain[3])", "rms_norm"),
    Mutant(THREADS, "the last chunk of each share is nobody's",
           "uint32_t(seen >> 32) == number && uint32_t(seen) > 0",
           "uint32_t(seen >> 32) == number && uint32_t(seen) > 1",
           "test_threads.py::test_the_count_changes_no_bit"),
    Mutant(MEMORY, "a buffer is reused for a larger array", "p.kept.find(bytes); place != p.kept.end()",
           "p.kept.begin(); place != p.kept.end()", "test_memory.py"),
    Mutant(MEMORY, "a buffer given back is never taken again", "p.kept[block->bytes].push_back(block);",
           "p.kept[block->bytes + 1].push_back(block);", "test_memory.py"),
    Mutant(RECORD, "results that live at the same time share a place", "buffer.first <= buffers_[j].last",
           "buffer.first < buffers_[j].first", "test_recording.py::test_replay_is_the_eager_run"),
    Mutant(RECORD, "every result has a place of its own", "if (place + buffer.bytes <= begin) break;",
           "", "test_recording.py::test_memory_is_planned_by_lifetime"),
    Mutant(RECORD, "a view of a result is moved to the result's beginning",
           " + (step.where[i] - buffer.data);",
           ";", "test_recording.py"),
    Mutant(RECORD, "the first replay is not compared",
           "!(fingerprint(one.data, one.bytes) == one.bits)",
           "one.data == nullptr", "test_recording.py"),
    Mutant(RECORD, "what is only read is not compared", "!(samples(range.begin, range.bytes) == range.bits)",
           "false", "test_recording.py::TestRefusals"),
    Mutant(RECORD, "what kernels change counts as changed behind their back",
           "range.read && !written_to(range)", "range.read", "test_recording.py"),
    Mutant(SIGNATURE, "sizes that share a letter may differ", "return known == size;",
           "return true;", "test_backend.py::test_wrong_arguments_get_the_references_errors"),
    Mutant(SIGNATURE, "a last axis with gaps is taken as dense", "!single && bytes != given.itemsize",
           "false", "rms_norm"),
]
