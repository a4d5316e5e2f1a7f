"""A library of pretrained models: train thousands, keep them with their cards, query them, transfer them.

Yamada et al., ACS Cent Sci 5 (2019) 1717 (XenonPy.MDL).
"""
