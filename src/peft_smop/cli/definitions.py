"""What the figures of costs are: printed under tables, which add over what they were taken."""

TRAINED = (
    "trained: parameters that are trained and read; allocated: with those that PEFT allocates and"
    " never reads; %: trained of all parameters"
)
SECONDS = "s/100: seconds of 100 training steps"
MEMORY = (
    "MiB: most memory in a training step; on CUDA what PyTorch had allocated at most, weights"
    " included; on the CPU the growth of the process, weights left out"
)
GFLOPS = (
    "GFLOPs: 10⁹ operations by PyTorch's counter; a multiply and add are two, attention counts as"
    " plain matrix products, element-wise work not at all"
)
