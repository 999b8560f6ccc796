"Five skin-lesion papers, reproduced. Not a medical device."
__version__ = "0.1.0"


def __getattr__(name):
    "`skinrepro.load_encoder` on demand: importing skinrepro must not import torch."
    if name == 'load_encoder':
        from skinrepro.companion.records import load_encoder
        return load_encoder
    raise AttributeError(f"module 'skinrepro' has no attribute '{name}'")
