"""The method: MIBF-Net, its loss, training step, metrics, bundle and dense inference.

Needs torch, numpy and safetensors alone. Importing the package imports none of them:
import the module that you need, for example ``from mibf.network import MIBFNet``.
"""

__version__ = "0.1.0"
