"""instainfer: serverless ML inference with opportunistic pre-loading (InstaInfer, SoCC'24; Tyche, TPDS'26)."""

__version__ = "0.1.0"
