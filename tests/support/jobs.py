"""Jobs on files of a test's folder."""

import os

from bertgen.jobs import follow_file, run_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run(generator, folder, content, name="in.txt", **options):
    """Runs a job on these bytes; the report and the bytes that came out."""
    (folder / name).write_bytes(content)
    output = folder / f"out{os.path.splitext(name)[1]}"
    report = run_file(generator, folder / name, output, **options)
    return report, output.read_bytes()


def begun(generator, folder, content, lines, **options):
    """Runs a job on these bytes until so many lines are answered, and leaves it."""
    (folder / "in.txt").write_bytes(content)
    reports = follow_file(generator, folder / "in.txt", folder / "out.txt", **options)
    for report in reports:
        if report.lines == lines:
            break
    reports.close()
    return report
