"""Exit codes of the commands."""

FAILED_LINES, BAD_INPUT, BAD_FILE, FAULT, BROKEN_PIPE = 1, 2, 3, 70, 141
EXIT_CODES = """exit codes:
  0    done
  1    done, but some lines failed and were recorded as failed (--strict stops); compare: outputs differ;
       bench: an output is wrong, or a ratio is below its floor
  2    wrong options, or input that cannot be used
  3    a model is missing or corrupt, an output cannot be written, or memory does not suffice
  4    bench check and compare: no verdict, because the machine was busy or the run was stopped
  70   a fault in bertgen itself, with a traceback to report
  130  interrupted (Ctrl-C)        143  terminated (SIGTERM)
  141  the reader of the output has closed it (as `| head` does)
"""
