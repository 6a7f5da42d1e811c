"""Which department a text is about: a linear model, how sure it is, and what it saw.

`text` reads, `scorer` scores, `calibration` says what a score is worth, `model` keeps it all in files
under one hash, `training` makes it (needs scikit-learn; the others need numpy alone).
"""
