"""The method: MIBF-Net, its loss, training step, metrics, bundle and dense inference.

Requires only torch, numpy and safetensors. Importing the package imports none of them:
import the module you need, for example `from mibf.network.mibfnet import MIBFNet`.
"""

from __future__ import annotations

__version__ = "0.1.0"
