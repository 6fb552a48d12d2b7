"""The systems that this one is compared with, driven by the same benchmark on the same model in the same run."""
