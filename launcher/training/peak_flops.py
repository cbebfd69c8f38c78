"""Peak speeds of GPUs in dense bf16 matrix products, for the share of it that a run reaches (MFU).

Figures are of NVIDIA's data sheets and architecture papers, without sparsity, sums in float32; sheets that give the
figure with sparsity alone are halved. A GPU that is not here has no MFU: its TFLOP/s are told, and nothing is made up.
"""

from __future__ import annotations

import re

PEAKS = (  # of the name that the driver gives, the first that fits; TFLOP/s
    (r"\bGB[23]00\b", 2500.0),
    (r"\bB[23]00\b", 2250.0),
    (r"\bB100\b", 1750.0),
    (r"\bH[12]00 NVL\b", 835.0),
    (r"\bH100 PCIe\b", 756.0),
    (r"\b(H100|H200|H800|GH200)\b", 989.0),
    (r"\bH20\b", 148.0),
    (r"\bA[18]00\b", 312.0),
    (r"\bA40\b", 149.7),
    (r"\bA30\b", 165.0),
    (r"\bA10G\b", 70.0),
    (r"\bA10\b", 125.0),
    (r"\bRTX A6000\b", 154.8),
    (r"\bRTX 6000 Ada\b", 364.2),
    (r"\bRTX PRO 6000\b", 503.8),
    (r"\bL40S\b", 362.0),
    (r"\bL40\b", 181.0),
    (r"\bL4\b", 121.0),
    (r"\bRTX 5090$", 209.5),
    (r"\bRTX 4090$", 165.2),
    (r"\bRTX 3090$", 71.0),
)
PARTS = r"\bMIG\b|\bLaptop\b|\bMax-Q\b"  # of a GPU, or a slower one of the same name


def bf16_peak(name: str) -> float | None:
    """FLOP/s of a GPU by its name; None if nobody wrote it down."""
    if re.search(PARTS, name):
        return None
    return next((1e12 * peak for words, peak in PEAKS if re.search(words, name)), None)
