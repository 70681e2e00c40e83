"""The thread that steps the engine of a Generator."""

import gc
import threading
import time
import weakref

from bertgen import Generator


def threads():
    return {thread for thread in threading.enumerate() if thread.name == "bertgen"}


def test_the_thread_starts_with_the_first_text_and_ends_with_the_generator(tiny_checkpoint):
    gc.collect()
    before = threads()
    generator = Generator(tiny_checkpoint)
    assert generator.generate(["one"])[0].text == "eins" and not threads() - before
    futures = [generator.submit(text) for text in ("one", "two")]
    assert [future.result(60).text for future in futures] == ["eins", "zwei"]
    (thread,) = threads() - before
    thread.join(0.05)
    assert thread.is_alive(), "it waits for the next text"
    reference = weakref.ref(generator)
    del generator
    until = time.monotonic() + 60
    while reference() is not None and time.monotonic() < until:  # the thread may be about to call `set_result`
        time.sleep(0.01)
    thread.join(60)
    assert reference() is None and not thread.is_alive(), "futures that are kept do not keep the Generator"
    assert futures[0].result().text == "eins"
