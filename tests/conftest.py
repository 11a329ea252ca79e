"""One thread for the tests: their models are tiny, and threads that wait for one another on a busy
machine take minutes where one takes a second."""

import torch

torch.set_num_threads(1)
