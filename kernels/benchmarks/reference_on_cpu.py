"""Is the reference of slot attention as fast on a CPU as the textbook form that absorbs nothing?

Command: python kernels/benchmarks/reference_on_cpu.py    (one thread, about 20 s; writes results/reference_on_cpu.json)

One iteration forward and backward with its GRU update, N = 256 tokens, D = 128, K = 6, 32 frames, fp32. The textbook
projects every token to a key and a value (Locatello et al., arXiv 2006.15055, Algorithm 1). Medians of runs that
take turns, so that both see the same machine.
"""

import json
import platform
import time
from statistics import median

import torch
from flamscale_kernels import slot_attention
from harness import RESULTS, relative_error
from torch import Tensor, nn

NUM_FRAMES, NUM_TOKENS, WIDTH, NUM_SLOTS, NUM_RUNS = 32, 256, 128, 6, 60


class Iteration(nn.Module):
    """Slots in, slots out; with the projections on the slots' side or on the tokens'."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.gru = nn.GRUCell(WIDTH, WIDTH)

    def update(self, updates: Tensor, slots: Tensor) -> Tensor:
        return self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)

    def textbook(self, tokens: Tensor, slots: Tensor) -> Tensor:
        keys, values = self.key(tokens), self.value(tokens)
        attention = torch.softmax(keys @ self.query(slots).mT * WIDTH**-0.5, dim=-1)  # [F, N, K]
        weights = attention / (attention.sum(dim=1, keepdim=True) + 1e-6)
        return self.update(weights.mT @ values, slots)

    def absorbed(self, tokens: Tensor, slots: Tensor) -> Tensor:
        means, _ = slot_attention(tokens, self.query(slots) @ self.key.weight, WIDTH**-0.5, backend="reference")
        return self.update(self.value(means), slots)


def main() -> None:
    """Checks that both forms agree, then times them in turns."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    iteration = Iteration()
    tokens = torch.randn(NUM_FRAMES, NUM_TOKENS, WIDTH, requires_grad=True)
    slots = torch.randn(NUM_FRAMES, NUM_SLOTS, WIDTH, requires_grad=True)
    leaves = [tokens, slots, *iteration.parameters()]
    forms = {"absorbed": iteration.absorbed, "textbook": iteration.textbook}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    gradients = {}
    for _ in range(NUM_RUNS):
        for name, form in forms.items():
            start = time.perf_counter()
            gradients[name] = torch.autograd.grad(form(tokens, slots).square().sum(), leaves)
            seconds[name].append(time.perf_counter() - start)
    for ours, theirs in zip(*gradients.values(), strict=True):
        assert relative_error(ours, theirs) < 1e-4
    milliseconds = {name: 1e3 * median(times[5:]) for name, times in seconds.items()}
    ratio = milliseconds["textbook"] / milliseconds["absorbed"]
    print(f"{ratio:.2f} x as fast as the textbook: {milliseconds} (milliseconds)")
    content = {"milliseconds": milliseconds, "ratio": ratio, "torch": torch.__version__, "machine": platform.machine()}
    (RESULTS / "reference_on_cpu.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
