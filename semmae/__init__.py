"""semmae: part maps for every image, a Vision Transformer pretrained by masking those parts, and honest scores of
it.
"""

__version__ = "0.1.0"
