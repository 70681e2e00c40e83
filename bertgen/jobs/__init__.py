"""Jobs: a file of texts in, a file of outputs out, one record for each line, in the order of the lines.

Lines end with LF or CRLF; records end with LF, and the last one like the last line. A byte-order mark is dropped. The
output appears under its name when it is complete and on the disk. A job that ended early resumes when it is called
again.
"""

from .job import follow_file as follow_file
from .job import follow_lines as follow_lines
from .job import run_file as run_file
from .report import JobReport as JobReport
from .report import statistics as statistics
