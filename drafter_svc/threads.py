"""How many threads torch's operators get, thread by thread."""

import threading

import torch


def limit_threads(count: int) -> None:
    """Run the operators that this thread calls on `count` threads; other threads keep theirs."""
    others = torch.get_num_threads()
    torch.set_num_threads(count)
    # A thread that has called no operator yet takes the number that was set last, by any thread.
    last = threading.Thread(target=torch.set_num_threads, args=(others,))
    last.start()
    last.join()
