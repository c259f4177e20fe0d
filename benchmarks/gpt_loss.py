"""Memory of the output head and its loss at the batch of the gpt recipe's `seed` and `full`.

    python benchmarks/gpt_loss.py

192 windows of 512 tokens, 512 wide, a vocabulary of 8,192, bf16: all logits at once would be 1.6 GB
(3.2 GB in fp32). Measured is by how much the peak of resident memory grows over forward and
backward, the gradients of both inputs included (100 MB and 17 MB). Writes
benchmarks/results/gpt_loss.md.
"""

from __future__ import annotations

import resource
import time

import machine
import torch

from surefoot.ops import CROSS_ENTROPY

POSITIONS, WIDTH, WORDS = 192 * 512, 512, 8192


def peak() -> float:
    """Return the largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Measure and write the page."""
    torch.set_num_threads(1)
    page = machine.heading("Memory of the loss", "benchmarks/gpt_loss.py", __doc__)
    hidden = torch.randn(POSITIONS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(WORDS, WIDTH)).requires_grad_()
    targets = torch.randint(0, WORDS, (POSITIONS,))
    call = CROSS_ENTROPY.ways["chunked"].call

    def once(hidden: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            call(hidden, weight, targets).backward()
        hidden.grad = weight.grad = None

    few = hidden.detach()[:512].clone().requires_grad_()
    once(few, targets[:512])  # what torch itself loads at the first product
    before, begun = peak(), time.process_time()
    once(hidden, targets)
    more, seconds = peak() - before, time.process_time() - begun
    page += [f"{more:.0f} MB, {seconds:.1f} processor seconds.", ""]
    page.append(machine.goal("more memory for the loss", more, 300, least=False, unit="MB"))
    machine.write("gpt_loss", page)


if __name__ == "__main__":
    main()
